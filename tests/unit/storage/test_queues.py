"""What is stored about queues: the workers that take from them, samples, and the tasks that wait."""

from __future__ import annotations

import json

import pytest
from redis import Redis

from bridge import BridgeSettings
from bridge.storage.in_flight import Delivery, InFlightTask
from bridge.storage.queue_sample import QueueHistory, QueueRecord, QueueSample, QueueStatus, read_sample, shown_queues
from bridge.storage.storage import Storage
from bridge.storage.waiting_tasks import QueueTasks, find_waiting_tasks


@pytest.fixture
def storage(client: Redis, settings: BridgeSettings) -> Storage:
    return Storage(client, settings)


def test_workers_report_and_leave(storage: Storage, client: Redis) -> None:
    """Live workers of all groups are found with their queues; those that stopped, died or wrote nonsense are not."""
    key = storage.keys.workers("tests")
    storage.workers.report("one", "here", ["b", "a"])
    storage.workers.report("two", "here", ["a"])
    storage.of_group("other").workers.report("three", "there", [])
    storage.workers.leave("two")
    now_ms = client.time()[0] * 1000
    for name, age_ms, text in (("late", 9_000, '{"broker": "", "queues": []}'), ("dead", 99_000, "{}")):
        client.hset(key, name, f"{now_ms - age_ms} {text}")
    for name, text in (("odd", "[]"), ("words", "text"), ("part", '{"broker": ""}')):
        client.hset(key, name, f"{now_ms} {text}")
    found = storage.workers.alive(["other", "tests"])
    assert [(one.group, one.broker, sorted(one.queues)) for one in found] == [
        ("other", "there", []),
        ("tests", "here", ["a", "b"]),
    ]
    assert client.hexists(key, "late")
    assert not client.hexists(key, "dead")
    assert 0 < client.pttl(key) <= 60_000


def test_a_sample_is_read_as_it_was_written(storage: Storage) -> None:
    """A sample keeps what is known and what is unknown; an old one is not shown."""
    status = QueueStatus("q", 3, 1.5, None, 2.5, True, "stalled")
    history = QueueHistory(("head",), None, 1, 2, 3, 4, 5, "stalled", {"stalled": 6})
    sample = QueueSample(1000, (QueueRecord(status, history), QueueRecord(QueueStatus("r"), QueueHistory())))
    assert storage.queue_samples.read()[1] is None
    storage.queue_samples.write(sample)
    assert storage.queue_samples.read()[1] == sample
    assert shown_queues(sample, 31_000) == (status, QueueStatus("r"))
    assert shown_queues(sample, 31_001) is None
    assert shown_queues(None, 0) is None


@pytest.mark.parametrize(
    "value",
    [b"", b"\xff", b"[]", b"{}", b'{"at_ms": "soon"}', b'{"at_ms": 1, "queues": [{"status": {"name": 1}}]}'],
)
def test_a_sample_of_another_program(value: bytes) -> None:
    """A value that is not a sample counts as no sample."""
    assert read_sample(value) is None


def test_a_sample_of_another_version() -> None:
    """Further fields of a later version are ignored, and those that an earlier one does not have are unknown."""
    queues = [{"status": {"name": "q", "new": 1}, "history": {"newer": []}, "newest": None}]
    found = read_sample(json.dumps({"at_ms": 1, "queues": queues, "more": {}}).encode())
    assert found == QueueSample(1, (QueueRecord(QueueStatus("q"), QueueHistory()),))


def test_tasks_that_wait(storage: Storage, client: Redis) -> None:
    """The oldest task of a queue that has not started is found, behind many newer ones, and when one last started."""
    now_ms = client.time()[0] * 1000
    inflight, tasks = storage.keys.inflight("tests"), storage.keys.inflight_tasks("tests")

    def sent(task_id: str, task: InFlightTask, age_s: int) -> None:
        (_, _, *record), (_, _, *scores) = storage.ledger.list_commands([task.entry(task_id)], now_ms - age_s * 1000)
        client.hset(tasks, items=record)
        client.zadd(inflight, {scores[1]: scores[0]})

    for number in range(2000):
        sent(f"new{number}", InFlightTask("t", "e", "1-1", "busy"), 1)
    sent("alone", InFlightTask("t", "e", "1-1", "payments", priority=3), 100)
    sent("later", InFlightTask("t", "e", "1-1", "delayed", delay_ms=600_000), 50)
    sent("due", InFlightTask("t", "e", "1-1", "delayed", delay_ms=10_000), 50)
    sent("given", InFlightTask("t", "e", "1-1", "delayed", given_up="1-1"), 500)
    sent("again", InFlightTask("t", "e", "1-1", "delayed", retried=True), 500)
    sent("started", InFlightTask("t", "e", f"{now_ms}-1", "busy"), 60)
    client.hset(tasks, "odd", b"not a record")
    storage.ledger.start_run("started", "token", idempotent=True, delivery=Delivery())
    found = find_waiting_tasks(storage, ["routed"], now_ms)
    assert found["payments"] == QueueTasks(now_ms - 100_000, 0, in_flight=True)
    assert found["delayed"] == QueueTasks(now_ms - 40_000, 0, in_flight=True)
    assert found["routed"] == QueueTasks()
    assert found["busy"].oldest_ms == now_ms - 1000
    assert now_ms <= found["busy"].started_ms < now_ms + 120_000  # the server's clock, on a busy machine


def test_no_tasks(storage: Storage) -> None:
    """Without tasks in flight, there is nothing to find."""
    assert find_waiting_tasks(storage, [], 1) == {}
    assert find_waiting_tasks(storage, ["q"], 1) == {"q": QueueTasks()}

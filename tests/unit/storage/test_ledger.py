"""The in-flight ledger on a real Redis: which run may start, which tasks are overdue, which have ended."""

from __future__ import annotations

import time

import pytest
from redis import Redis
from redis.exceptions import WatchError

from bridge.storage.in_flight import Delivery, Ended, InFlightTask, RunStart
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ledger
from bridge.testing.redis_server import RedisServer
from tests.support.ledgers import PAIR, MakeLedger, end
from tests.support.waiting import eventually


@pytest.fixture
def client(each_server: RedisServer) -> Redis:
    return Redis.from_url(each_server.url)


def test_a_task_runs_once(make: MakeLedger, client: Redis, prefix: str) -> None:
    """One run starts; a second copy gets the time left of its lease or, after the end, the result "ended"."""
    ledger = make(lease_s=30)
    ledger.acknowledge_sent([], [PAIR.entry("t1")])
    assert ledger.start_run("t1", "first", idempotent=True) == RunStart("started")
    second = ledger.start_run("t1", "second", idempotent=True)
    assert second.result == "running"
    assert 29_000 < second.left_ms <= 30_000
    end(ledger, "t1")
    assert ledger.start_run("t1", "second", idempotent=True).result == "ended"
    assert ledger.size() == 0
    assert not client.exists(Keys(prefix).lease("t1"))


@pytest.mark.parametrize("moment", ["before it", "between it and EXEC"])
def test_the_first_end_counts(make: MakeLedger, client: Redis, prefix: str, moment: str) -> None:
    """A transaction that would end a task changes nothing if another one has ended it before, even just before EXEC."""
    ledger, effects = make(), f"{prefix}effects"
    with client.pipeline(transaction=True) as first, client.pipeline(transaction=True) as second:
        if moment == "between it and EXEC":
            assert ledger.end_first("t1", Ended(), second)
            second.rpush(effects, "second")
        assert ledger.end_first("t1", Ended(), first)
        first.rpush(effects, "first")
        first.execute()
        if moment == "before it":
            assert not ledger.end_first("t1", Ended(), second)
        else:
            with pytest.raises(WatchError):
                second.execute()
    assert client.lrange(effects, 0, -1) == [b"first"]
    assert ledger.has_ended("t1")


def test_a_lost_reply_does_not_make_a_run_stand_in_its_own_way(make: MakeLedger) -> None:
    """Starting again with the same token gives the same result."""
    ledger = make()
    first = ledger.start_run("t1", "token", idempotent=True)
    assert ledger.start_run("t1", "token", idempotent=True) == first == RunStart("started")


def test_a_dead_run_makes_room_and_is_counted(make: MakeLedger) -> None:
    """When a lease expires, the next copy runs; after max_redispatches crashed runs no copy runs any more."""
    ledger = make(lease_s=0.05, max_redispatches=2)
    outcomes: list[RunStart] = []

    def begin_next() -> bool:
        begun = ledger.start_run("t1", f"run{len(outcomes)}", idempotent=True)
        if begun.result != "running":
            outcomes.append(begun)
        return begun.result == "poisoned"

    eventually(begin_next, "the task is poisoned")
    assert outcomes == [
        RunStart("started"),
        RunStart("started", deaths=1),
        RunStart("started", deaths=2),
        RunStart("poisoned", deaths=3),
    ]


def test_a_renewed_lease_holds(make: MakeLedger) -> None:
    """Renewing extends a lease; if another run has taken over, renewing returns False."""
    ledger = make(lease_s=0.3)
    ledger.start_run("t1", "first", idempotent=True)
    for _ in range(5):
        assert ledger.renew("t1", "first")
        assert ledger.start_run("t1", "second", idempotent=True).result == "running"
    eventually(lambda: ledger.start_run("t1", "second", idempotent=True).result == "started", "the lease expires")
    assert not ledger.renew("t1", "first")


def test_opting_out_of_idempotence(make: MakeLedger, client: Redis) -> None:
    """Without idempotent=True a task runs even if it is running elsewhere or has ended."""
    ledger = make()
    assert ledger.start_run("t1", "first", idempotent=False) == RunStart("started")
    assert ledger.start_run("t1", "second", idempotent=False) == RunStart("started")
    end(ledger, "t1")
    assert ledger.start_run("t1", "third", idempotent=False) == RunStart("started")


def test_a_task_that_ended_before_it_was_listed_is_not_listed(make: MakeLedger, client: Redis) -> None:
    """A task that has ended before or between its dispatches is not added to the ledger."""
    ledger = make()
    end(ledger, "fast")
    ledger.acknowledge_sent([], [PAIR.entry("fast"), PAIR.entry("slow")])
    assert ledger.size() == 1
    ledger.acknowledge_sent([], [PAIR.entry("slow")])
    assert ledger.size() == 1


def test_sent_acknowledges_and_lists_in_one_step(make: MakeLedger, client: Redis, prefix: str) -> None:
    """Acknowledging journal entries and adding their tasks to the ledger is one step, which can be repeated."""
    ledger = make()
    journal = Keys(prefix).journal
    entry_ids = [client.xadd(journal, {"event": b"{}"}) for _ in range(3)]
    client.xreadgroup("tests", "one", {journal: ">"})
    for _ in range(2):
        ledger.acknowledge_sent(entry_ids[:2], [PAIR.entry("t1"), PAIR.entry("t2")])
        assert client.xpending(journal, "tests")["pending"] == 1
        assert ledger.size() == 2


def test_overdue_comes_after_the_delay(make: MakeLedger) -> None:
    """A task is overdue redispatch_after_s after it was sent, plus its countdown."""
    ledger = make(redispatch_after_s=0.05)
    ledger.acknowledge_sent([], [InFlightTask("t.all", "e", "1-1", delay_ms=60_000).entry("late"), PAIR.entry("soon")])
    found = eventually(lambda: ledger.find_overdue(10), "one task is overdue")
    assert [(task.task_id, task.in_flight) for task in found] == [("soon", PAIR)]


def test_running_waiting_and_ended_tasks_are_put_off_or_struck(make: MakeLedger, client: Redis, prefix: str) -> None:
    """A sweep returns only tasks that are neither running, queued nor ended; all others are no longer overdue."""
    ledger = make(redispatch_after_s=0.2, lease_s=60)
    ledger.acknowledge_sent([], [PAIR.entry(name) for name in ("running", "waiting", "ended", "lost")])
    ledger.start_run("running", "token", idempotent=True)
    eventually(lambda: len(ledger.find_overdue(10)) == 3, "all tasks but the running one are overdue")
    overdue = ledger.find_overdue(10)
    assert "running" not in {task.task_id for task in overdue}
    client.set(Keys(prefix).done("ended"), b"1")  # as if the task had ended before it was added
    assert [task.task_id for task in ledger.sweep_overdue(overdue, {"waiting"})] == ["lost"]
    assert {task.task_id for task in ledger.find_overdue(10)} <= {"lost", "waiting"}
    assert ledger.size() == 3


def passed(ledger: Ledger, *task_ids: str) -> dict[str, bool]:
    """Return, for each of these tasks that is overdue, whether it has left its queue."""
    return {task.task_id: task.left_queue for task in ledger.find_overdue(10) if task.task_id in task_ids}


def test_a_later_task_of_the_queue_that_began_passes_an_earlier_one(make: MakeLedger) -> None:
    """When a task sent a lease later has started, earlier ones of the same queue and priority have left the queue."""
    ledger = make(redispatch_after_s=0.1, lease_s=0.05)
    other = InFlightTask("t.all", "e", "1-1", queue="celery", priority=6)
    ledger.acknowledge_sent([], [PAIR.entry("first"), other.entry("other")])
    eventually(lambda: len(ledger.find_overdue(10)) == 2, "both tasks are overdue")
    assert passed(ledger, "first", "other") == {"first": False, "other": False}
    ledger.acknowledge_sent([], [PAIR.entry("later")])
    ledger.start_run("later", "token", idempotent=True)
    assert passed(ledger, "first", "other") == {"first": True, "other": False}


def test_what_says_little_of_the_order_passes_nothing(make: MakeLedger) -> None:
    """The start of a task sent at about the same time, or sent again, does not show that others left the queue."""
    ledger = make(redispatch_after_s=0.1, lease_s=30)
    ledger.acknowledge_sent([], [PAIR.entry("first")])
    ledger.acknowledge_sent([], [PAIR.entry("overlapping")])
    eventually(lambda: len(ledger.find_overdue(10)) == 2, "both tasks are overdue")
    ledger.start_run("overlapping", "token", idempotent=True)
    assert passed(ledger, "first") == {"first": False}
    hasty = make(redispatch_after_s=0.1, lease_s=0.05)
    hasty.acknowledge_sent([], [PAIR._replace(redispatches=1).entry("again")])
    hasty.start_run("again", "token", idempotent=True)
    assert passed(hasty, "first") == {"first": False}


def test_a_retry_says_nothing_of_the_order(make: MakeLedger) -> None:
    """The start of a retry does not prove that earlier tasks have left the queue."""
    ledger = make(redispatch_after_s=0.1, lease_s=0.05)
    ledger.acknowledge_sent([], [PAIR.entry("first"), PAIR.entry("retried")])
    ledger.start_run("retried", "one", idempotent=True)
    ledger.release("retried", "one", 0, retries=1)
    eventually(lambda: len(ledger.find_overdue(10)) == 2, "both tasks are overdue")
    ledger.start_run("retried", "two", idempotent=True, delivery=Delivery(1))
    assert passed(ledger, "first") == {"first": False}


def test_queues_that_are_used_no_more_are_forgotten(make: MakeLedger, client: Redis, prefix: str) -> None:
    """With a queue for each tenant, only the queues are remembered in which a task has started within event_ttl_s."""
    ledger = make(event_ttl_s=60, redispatch_after_s=60)
    watermarks = Keys(prefix).queue_watermarks("tests")
    old_ms = (client.time()[0] - 61) * 1000
    for number in range(150):
        lane = f"tenant {number} started 0"
        client.hset(watermarks, mapping={lane: old_ms - 1000, f"{lane} started": old_ms})
    client.hset(watermarks, "of an older version 0", old_ms)
    ledger.acknowledge_sent([], [PAIR.entry("t1")])
    ledger.start_run("t1", "token", idempotent=True)

    def left() -> set[bytes]:
        ledger.find_overdue(10)
        return set(client.hkeys(watermarks))

    eventually(lambda: left() == {b"celery 0", b"celery 0 started"}, "the others are forgotten")
    assert left() == {b"celery 0", b"celery 0 started"}


def test_waiting_is_believed_for_half_the_life_of_an_event(make: MakeLedger, client: Redis) -> None:
    """An overdue task is assumed to be queued for half of event_ttl_s; then it is sent again, only once."""
    ledger = make(redispatch_after_s=0.05, event_ttl_s=1)

    def swept() -> set[str]:
        overdue = ledger.find_overdue(10)
        return {task.task_id for task in ledger.sweep_overdue(overdue, {task.task_id for task in overdue})}

    sent_at = time.monotonic()
    ledger.acknowledge_sent([], [PAIR.entry("lost"), PAIR._replace(redispatches=1).entry("again")])
    eventually(lambda: swept() == {"lost"}, "the task is sent again")
    assert time.monotonic() - sent_at > 0.4
    ledger.acknowledge_sent([], [PAIR._replace(redispatches=1).entry("lost")])
    sent_at = time.monotonic()
    while time.monotonic() - sent_at < 0.8:
        assert swept() == set()


def test_pairs_of_another_version_are_read(make: MakeLedger, client: Redis, prefix: str) -> None:
    """After a roll-back, an older version can process ledger entries of a newer one."""
    ledger = make(redispatch_after_s=0.01)
    ledger.acknowledge_sent([], [PAIR.entry("t1")])
    pairs = Keys(prefix).inflight_tasks("tests")
    stored = client.hget(pairs, "t1")
    client.hset(pairs, "t1", stored.replace(b"{", b'{"colour": "red", '))
    (found,) = eventually(lambda: ledger.find_overdue(10), "the task is overdue")
    assert found.in_flight == PAIR

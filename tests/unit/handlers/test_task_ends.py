"""The ends of tasks in one process: they are recorded in the background and do not block each other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
from celery.app.task import Context
from celery.contrib.testing.app import setup_default_app
from celery.exceptions import Ignore
from redis import Redis
from redis.exceptions import RedisError

from bridge import BusUnavailable, Event, EventBus, InvalidHandler, get_bus
from bridge.handlers.leases import Leases, get_leases
from bridge.handlers.run import Run
from bridge.handlers.task import end_revoked
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.in_flight import Delivery, InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ledger
from bridge.testing.redis_server import RedisServer
from tests import handlers
from tests.support.apps import make_app
from tests.support.waiting import eventually

EVENT = Event(type="a.b", id="e1")


@pytest.fixture
def bus(server: RedisServer, prefix: str) -> Iterator[EventBus]:
    """The bus of the application that is current in this test."""
    with make_app(server.url, prefix) as app, setup_default_app(app):
        app.set_current()
        app.conf.update(bridge_redis_url=server.url, bridge_channel_prefix=prefix, bridge_group="tests")
        app.conf.update(bridge_lease_s=0.6, bridge_publish_timeout_s=0.1)
        with get_bus() as connected:
            yield connected


@pytest.fixture
def leases(bus: EventBus) -> Leases:
    return get_leases()


@pytest.fixture
def ledger(bus: EventBus) -> Ledger:
    return bus.storage.ledger


@pytest.fixture
def letters(bus: EventBus) -> DeadLetters:
    return bus.storage.dead_letters


def failed(task_id: str) -> DeadLetter:
    return DeadLetter.of_event("failure", "boom", EVENT, EVENT.encode(), "t.all", task_id)


def test_an_end_that_is_refused_holds_up_no_lease(
    leases: Leases, bus: EventBus, client: Redis, prefix: str, ledger: Ledger, letters: DeadLetters
) -> None:
    """While dead letters cannot be written, other runs keep their leases and other ends are recorded."""
    client.set(Keys(prefix).dead("tests"), "no stream")
    assert leases.begin("long", idempotent=True).result == "started"
    leases.end("refused", failed("refused"))
    deadline = time.monotonic() + 3 * bus.settings.lease_s

    def still_running() -> bool:
        assert ledger.start_run("long", "copy", idempotent=True).result == "running"
        return time.monotonic() > deadline

    eventually(still_running, "three lease periods have passed")
    leases.end("well")
    assert ledger.has_ended("well")
    assert not ledger.has_ended("refused")
    client.delete(Keys(prefix).dead("tests"))
    eventually(lambda: ledger.has_ended("refused"), "the end is recorded as soon as it can be")
    assert [letter.task_id for letter in letters.latest(10)] == ["refused"]
    leases.end("long")


def test_a_renewal_that_is_refused_holds_up_no_other(
    leases: Leases, bus: EventBus, client: Redis, ledger: Ledger
) -> None:
    """While the leases of some runs cannot be renewed, those of others are, and ends are recorded."""
    tasks = [f"task{number}" for number in range(6)]
    for task_id in tasks:
        assert leases.begin(task_id, idempotent=True).result == "started"
    for task_id in tasks[1:]:
        client.set(bus.storage.keys.lease(task_id), "no hash")
    deadline = time.monotonic() + 3 * bus.settings.lease_s

    def still_running() -> bool:
        assert ledger.start_run("task0", "copy", idempotent=True).result == "running"
        return time.monotonic() > deadline

    eventually(still_running, "three lease periods have passed")
    leases.end_in_background("other", failed("other"))
    eventually(lambda: ledger.has_ended("other"), "an end is recorded")
    for task_id in tasks:
        leases.end(task_id)


def test_a_lease_that_cannot_be_released_is_released_later(own_server: RedisServer, prefix: str) -> None:
    """If Redis is unavailable when a task is retried, no copy of the earlier message starts when Redis is back."""
    explicit = {"redis_url": own_server.url, "channel_prefix": prefix, "publish_timeout_s": 0.1, "lease_s": 0.6}
    with EventBus(**explicit) as bus:
        leases = Leases(bus)
        assert leases.begin("t1", idempotent=True).result == "started"
        own_server.kill()
        with pytest.raises(BusUnavailable):
            leases.release("t1", 0.0, 1)
        own_server.start()
        outcomes = set()

        def superseded() -> bool:
            with suppress(RedisError):
                outcomes.add(bus.storage.ledger.start_run("t1", "copy", idempotent=True).result)
            return "superseded" in outcomes

        eventually(superseded, "the lease is released")
        assert outcomes <= {"running", "superseded"}
        leases.wait_for_ends(5.0)
        assert bus.storage.ledger.start_run("t1", "retry", idempotent=True, delivery=Delivery(1)).result == "started"


def test_an_end_that_cannot_be_recorded_is_waited_for(own_server: RedisServer, prefix: str) -> None:
    """While Redis is unavailable, the end of a task keeps its run and its lease; no copy runs before it is recorded."""
    explicit = {"redis_url": own_server.url, "channel_prefix": prefix, "publish_timeout_s": 0.1, "lease_s": 0.6}
    with EventBus(**explicit) as bus, ThreadPoolExecutor() as pool:
        leases = Leases(bus)
        assert leases.begin("t1", idempotent=True).result == "started"
        own_server.kill()
        letter = DeadLetter("failure", "while Redis was away", "journal", b"{}", task_id="t1")
        ending = pool.submit(leases.end, "t1", letter)
        deadline = time.monotonic() + 1.5
        eventually(lambda: time.monotonic() > deadline, "the lease has expired")
        assert not ending.done()
        own_server.start()
        outcomes = set()

        def ask() -> bool:
            try:
                outcomes.add(bus.storage.ledger.start_run("t1", "copy", idempotent=True).result)
            except RedisError:
                return False
            return "ended" in outcomes

        eventually(ask, "the end is recorded")
        ending.result(10)
        assert "started" not in outcomes
        (letter,) = bus.storage.dead_letters.latest(10)
        assert letter.detail == "while Redis was away"


def test_a_worker_that_stops_does_not_wait_for_ever(
    own_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A minute after the signal to stop, an end that cannot be recorded is given up with an error in the log."""
    monkeypatch.setattr("bridge.handlers.leases.stopping_for_s", lambda: 61.0)
    explicit = {"redis_url": own_server.url, "channel_prefix": prefix, "publish_timeout_s": 0.1}
    with EventBus(**explicit) as bus:
        leases = Leases(bus)
        assert leases.begin("t1", idempotent=True).result == "started"
        own_server.kill()
        with pytest.raises(BusUnavailable):
            leases.end("t1")
        assert "the end of task t1 is not recorded, so the task runs again" in caplog.text
        leases.release_locally("t1")


def revoke(task_id: str, *, retries: int = 0, **how: bool) -> None:
    """Report what Celery reports in the main process of a worker when it drops a message."""
    request = SimpleNamespace(id=task_id, args=[EVENT.to_dict()], retries=retries)
    end_revoked(handlers.everything, request, **how)


def test_a_dropped_message_ends_its_task_if_its_try_is_due(bus: EventBus, ledger: Ledger, letters: DeadLetters) -> None:
    """A revoked retry ends in a dead letter; a revoked copy of an earlier try changes nothing."""
    for task_id in ("earlier", "due"):
        ledger.start_run(task_id, "first", idempotent=True)
        ledger.release(task_id, "first", 0, retries=1)
    revoke("earlier", retries=0)
    revoke("due", retries=1)
    eventually(lambda: ledger.has_ended("due"), "the end is recorded")
    assert [(letter.task_id, letter.attempts) for letter in letters.latest(10)] == [("due", 2)]
    assert not ledger.has_ended("earlier")


def test_a_copy_that_is_dropped_is_not_the_end_of_its_task(
    leases: Leases, bus: EventBus, ledger: Ledger, letters: DeadLetters
) -> None:
    """A copy that expires does not end a task that has ended or is running; otherwise it leaves a dead letter."""
    ledger.acknowledge_sent(
        [], [InFlightTask("t.all", "e1", "1-1").entry(name) for name in ("ended", "running", "waiting", "terminated")]
    )
    leases.end("ended")
    other = Leases(bus)  # as in another process
    for task_id in ("running", "terminated"):
        assert other.begin(task_id, idempotent=True).result == "started"
    for task_id in ("ended", "running", "waiting"):
        revoke(task_id, expired=True)
    revoke("terminated", terminated=True)
    eventually(lambda: ledger.has_ended("waiting") and ledger.has_ended("terminated"), "both ends are recorded")
    assert {letter.task_id: letter.reason for letter in letters.latest(10)} == {
        "waiting": "expired",
        "terminated": "revoked",
    }
    assert not ledger.has_ended("running")
    assert ledger.size() == 1
    for task_id in ("running", "terminated"):
        other.release_locally(task_id)


@pytest.mark.parametrize("first", ["terminated", "dropped"])
def test_a_terminated_run_is_the_end_of_its_task_whatever_becomes_of_copies(
    leases: Leases, bus: EventBus, client: Redis, ledger: Ledger, first: str
) -> None:
    """If a run is terminated and a copy is dropped, in either order, the task ends even while Redis blocks writes."""
    other = Leases(bus)  # as in another process
    assert other.begin("t", idempotent=True).result == "started"
    other.release_locally("t")
    client.client_pause(10_000, all=False)
    revoke("t", terminated=first == "terminated")

    def held() -> bool:
        return any("b" in row["flags"] for row in client.client_list())

    eventually(held, "Redis blocks the first write")
    revoke("t", terminated=first != "terminated")
    client.client_unpause()
    eventually(lambda: ledger.has_ended("t"), "the end is recorded")


def test_nothing_holds_up_the_main_process_of_a_worker(leases: Leases, bus: EventBus, client: Redis) -> None:
    """A bus that hangs delays the record of a dropped message, but not the process that drops it."""
    client.client_pause(1500, all=True)
    began = time.monotonic()
    for number in range(10):
        revoke(f"t{number}", expired=True)
    assert time.monotonic() - began < 0.5
    eventually(lambda: bus.storage.ledger.has_ended("t9"), "the ends are recorded afterwards")
    assert time.monotonic() - began > 1


def test_a_handler_does_not_take_the_place_of_another() -> None:
    """replace() would pass the id of the ended task to another handler, so it is refused with advice."""
    with pytest.raises(InvalidHandler, match="publish an event for it"):
        handlers.everything.replace(handlers.exact.s(EVENT))
    with pytest.raises(InvalidHandler, match=r"t\.exact"):
        handlers.everything.replace(handlers.glob.s(EVENT) | handlers.exact.s(EVENT))


def test_monitors_that_cannot_be_told_are_no_failure(
    leases: Leases, own_server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the broker fails while a copy is skipped, a warning is logged and the task that has ended does not fail."""
    leases.end("t1")
    with make_app(own_server.url, prefix) as app:
        app.finalize()
        copy = Run(app.tasks["t.all"], Context(id="t1"), EVENT.to_dict())
        with pytest.raises(Ignore):
            copy.execute()  # opens the connection
        assert not caplog.records
        own_server.kill()
        with pytest.raises(Ignore):
            copy.execute()
        assert "Could not send the worker event task-deduplicated for task t1" in caplog.text

"""What Celery does after a handler, and what fails there: the task ends with what is true of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.contrib.testing.app import setup_default_app
from celery.exceptions import Ignore, Reject
from celery.signals import before_task_publish, task_revoked
from celery.states import REJECTED
from celery.worker import state
from kombu.exceptions import OperationalError

from bridge import Event, EventBus, EventTask, get_bus
from bridge.handlers.request import EventRequest
from bridge.handlers.task import end_revoked
from bridge.storage.dead_letter import DeadLetter
from bridge.testing.redis_server import RedisServer
from tests.support.apps import make_app
from tests.support.waiting import eventually

EVENT = Event(type="a.b", id="e1")


@pytest.fixture
def app(server: RedisServer, prefix: str) -> Iterator[Celery]:
    with make_app(server.url, prefix) as app, setup_default_app(app):
        app.set_current()
        app.conf.update(bridge_redis_url=server.url, bridge_channel_prefix=prefix, bridge_group="tests")
        app.conf.update(result_backend="cache+memory://", bridge_lease_s=0.5)
        with get_bus():
            yield app


@pytest.fixture
def bus(app: Celery) -> EventBus:
    return get_bus()


def run(app: Celery, function: Callable[[], Any], base: type[EventTask] = EventTask, **request: Any) -> Any:
    """Run a function as a handler in a worker; return what the pool receives."""

    def handler(event: Event[Any]) -> Any:
        return function()

    task: Any = app.task(base=base, name="t.traced", shared=False)(handler)
    app.finalize()
    task.__trace__ = build_tracer(task.name, task, app=app)
    fields = {"id": "t1", "task": task.name, "delivery_info": {}, **request}
    return task.__trace__("t1", [EVENT.to_dict()], {}, fields)


def letter_of(bus: EventBus) -> DeadLetter:
    (letter,) = bus.storage.dead_letters.latest(10)
    assert letter.task_id == "t1"
    assert bus.storage.ledger.has_ended("t1")
    return letter


def test_a_task_with_successors_ends_when_they_are_sent(app: Celery, bus: EventBus) -> None:
    """While Celery sends the next task of a chain, the handler has not ended; afterwards it has succeeded."""
    following = app.signature("t.following")
    ended_before = []

    def before_publish(**_: Any) -> None:
        ended_before.append(bus.storage.ledger.has_ended("t1"))

    before_task_publish.connect(before_publish)
    try:
        assert run(app, lambda: 1, chain=[following]).info is None
    finally:
        before_task_publish.disconnect(before_publish)
    assert ended_before == [False]
    assert bus.storage.ledger.has_ended("t1")
    assert not bus.storage.dead_letters.latest(1)


@pytest.mark.parametrize("successors", ["chain", "callbacks"])
def test_successors_that_cannot_be_sent(app: Celery, bus: EventBus, successors: str) -> None:
    """The result that the next task needs cannot be encoded: the task has failed, with the traceback of that error."""
    outcome = run(app, object, **{successors: [app.signature("t.following")]})
    assert outcome.info is not None
    letter = letter_of(bus)
    assert letter.reason == "failure"
    assert "EncodeError" in letter.detail
    assert "EncodeError" in letter.traceback


def test_an_error_of_the_result_backend_before_the_handler(app: Celery, bus: EventBus) -> None:
    """What a hook raises before the handler is a failure, even if Celery cannot store that."""

    class NotStarting(EventTask):
        abstract = True

        def before_start(self, *args: Any) -> None:
            raise ValueError("in before_start")

    def away(*args: Any, **options: Any) -> None:
        raise OperationalError("away")

    app.backend.mark_as_failure = away
    outcome = run(app, lambda: 1, NotStarting)
    assert outcome.info is not None  # so that the message is acknowledged
    assert (letter_of(bus).reason, letter_of(bus).traceback.count("in before_start") > 0) == ("failure", True)


def test_a_hook_that_does_not_call_the_bridge(app: Celery, bus: EventBus) -> None:
    """A base class that calls run() itself, as Celery's manual has it, ends its task nevertheless."""

    class Direct(EventTask):
        abstract = True

        def __call__(self, event: Any) -> Any:
            return self.run(event)

    assert run(app, lambda: 1, Direct).info is None
    assert bus.storage.ledger.has_ended("t1")


@pytest.mark.parametrize("error", [ValueError, Ignore])
def test_a_copy_that_does_not_start_ends_no_other_run(app: Celery, bus: EventBus, error: type[Exception]) -> None:
    """A hook drops a copy of the message, or fails, while the task runs elsewhere: that run goes on."""

    class NotStarting(EventTask):
        abstract = True

        def before_start(self, *args: Any) -> None:
            raise error("in before_start")

    assert bus.storage.ledger.start_run("t1", "elsewhere", idempotent=True).result == "started"
    run(app, lambda: 1, NotStarting)
    assert not bus.storage.ledger.has_ended("t1")
    assert not bus.storage.dead_letters.latest(1)


@pytest.mark.parametrize("runs_again", [True, False])
def test_whether_a_task_runs_again_after_a_crash(app: Celery, bus: EventBus, runs_again: bool) -> None:
    """With reject_on_worker_lost=False, a task whose worker has died does not run again when it is received again."""

    class Lost(EventTask):
        abstract = True
        reject_on_worker_lost = runs_again

    ledger, runs = bus.storage.ledger, []
    assert ledger.start_run("t1", "died", idempotent=True).result == "started"

    def dead() -> bool:
        return ledger.start_run("t1", "copy", idempotent=True, max_deaths=0).result == "poisoned"

    eventually(dead, "the lease of the first run has expired")
    run(app, lambda: runs.append(1), Lost)
    assert bool(runs) is runs_again
    assert [letter.reason for letter in bus.storage.dead_letters.latest(10)] == ["worker_lost"] * (not runs_again)
    assert ledger.has_ended("t1")


@pytest.mark.parametrize("expired", [True, False])
def test_a_revoked_task_while_the_result_backend_is_away(app: Celery, bus: EventBus, expired: bool) -> None:
    """Its message is acknowledged and it ends in a dead letter. Celery alone would reconnect to the broker."""

    def handler(event: Event[Any]) -> None: ...

    task: Any = app.task(base=EventTask, name="t.revoked", shared=False)(handler)
    headers = {"id": "t1", "task": task.name} | ({"expires": "2000-01-01T00:00:00+00:00"} if expired else {})
    content = {"body": b"", "payload": ([EVENT.to_dict()], {}, {}), "content_type": "", "content_encoding": ""}
    message = SimpleNamespace(headers=headers, delivery_info={}, properties={}, **content)
    acknowledged: list[str] = []

    def away(*args: Any, **options: Any) -> None:
        raise OperationalError("away")

    app.backend.mark_as_revoked = away
    request: Any = EventRequest(message, app=app, task=task, on_ack=lambda *_: acknowledged.append("t1"))
    task_revoked.connect(end_revoked)
    if not expired:
        state.revoked.add("t1")
    try:
        assert request.revoked()
        assert request.revoked()
    finally:
        task_revoked.disconnect(end_revoked)
        state.revoked.discard("t1")
    assert acknowledged == ["t1"]
    eventually(lambda: bus.storage.ledger.has_ended("t1"), "the end is recorded")
    assert letter_of(bus).reason == ("expired" if expired else "revoked")


def test_a_retry_survives_the_hook_of_the_retry(app: Celery, bus: EventBus) -> None:
    """If on_retry() fails, the retry has been sent nevertheless: the task has not ended."""

    class Failing(EventTask):
        abstract = True

        def on_retry(self, *args: Any) -> None:
            raise RuntimeError("in on_retry")

    def retry() -> None:
        raise app.tasks["t.traced"].retry(countdown=60)

    assert run(app, retry, Failing).info is not None
    assert not bus.storage.ledger.has_ended("t1")
    assert not bus.storage.dead_letters.latest(1)


def test_a_hook_that_rejects_the_message_of_a_success(app: Celery, bus: EventBus) -> None:
    """Reject from on_success(), which leaves Celery's tracer, is returned to the pool like any other outcome."""

    class Rejecting(EventTask):
        abstract = True

        def on_success(self, *args: Any) -> None:
            raise Reject("again", requeue=True)

    assert run(app, lambda: 1, Rejecting).info.state == REJECTED
    assert bus.storage.ledger.has_ended("t1")

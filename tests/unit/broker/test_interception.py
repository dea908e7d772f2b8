"""Tools that intercept the messages that Celery makes: each of their messages is made by Celery, with one warning."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import wrapt
from celery import Celery, Task
from celery.signals import after_task_publish, before_task_publish

from bridge import BridgeSettings, Event, EventTask
from bridge.broker import outbox as outbox_module
from bridge.broker.interception import interceptors
from bridge.broker.outbox import Outbox
from bridge.events.encoded import EncodedEvent
from bridge.telemetry import LogThrottle
from tests.handlers import HANDLERS
from tests.support.queues import Queues

STORED = EncodedEvent.read(Event(type="billing.paid", id="e").encode())


@pytest.fixture(autouse=True)
def _first_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a warning appear, though another test of this process may have caused it before."""
    monkeypatch.setattr(outbox_module, "_throttle", LogThrottle(1e9))


def wrapped(function: Any) -> Any:
    """Return what Sentry does: a function with the name, the module and the attributes of the one that it wraps."""
    calls = iter(range(100))

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        options["headers"] = {**(options.get("headers") or {}), "call": next(calls)}
        return function(*args, **options)

    return wrapper


def wrapped_by_wrapt(function: Any) -> Any:
    """Return what Datadog does: an object that has even the code of the function that it wraps."""

    def wrapper(function: Any, _instance: Any, args: Any, options: Any) -> Any:
        return wrapped(function)(*args, **options)

    return wrapt.FunctionWrapper(function, wrapper)


class AddingTask(Task):  # type: ignore[type-arg]
    """A class for all tasks of an application, as Celery's own one for Django."""

    abstract = True

    def apply_async_on_commit(self, *args: Any, **options: Any) -> None:
        """Send the task later."""


class SendingTask(AddingTask):
    """Another one."""

    abstract = True

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Send the task."""
        return super().apply_async(*args, **options)


class Shop(Celery):
    """An application of a user."""

    def send_task(self, *args: Any, **options: Any) -> Any:
        """Send a task."""
        return super().send_task(*args, **options)


@pytest.mark.parametrize("wrap", [wrapped, wrapped_by_wrapt])
@pytest.mark.parametrize(("owner", "method"), [(Task, "apply_async"), (Celery, "send_task")])
def test_wrappers_are_called_for_each_message(
    outbox: Outbox,
    queues: Queues,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    method: str,
    wrap: Any,
) -> None:
    """A wrapper that appears after the first message is called for each further one; one warning names it."""
    assert outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1").stamped
    monkeypatch.setattr(owner, method, wrap(vars(owner)[method]))
    outbox.refresh()
    with caplog.at_level(logging.WARNING):
        messages = [outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1") for _ in range(3)]
    assert not any(message.stamped for message in messages)
    outbox.send(messages)
    calls = [message["headers"]["call"] for message in queues.messages()]
    assert len(calls) == 3
    assert wrap is wrapped_by_wrapt or calls == [0, 1, 2]
    (warning,) = [one for one in caplog.records if getattr(one, "action", "") == "publishing_is_wrapped"]
    assert __name__ in warning.getMessage()
    monkeypatch.undo()
    outbox.refresh()
    assert outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1").stamped


@pytest.mark.parametrize("signal", [before_task_publish, after_task_publish], ids=["before", "after"])
@pytest.mark.parametrize("weak", [True, False])
def test_the_warning_names_a_receiver(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, signal: Any, weak: bool
) -> None:
    """The user's receiver of a publish signal is called for each message, and the warning names it."""

    def receiver(**_: Any) -> None: ...

    signal.connect(receiver, weak=weak)
    try:
        outbox.refresh()
        assert not outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1").stamped
    finally:
        signal.disconnect(receiver)
    assert f"{__name__}.test_the_warning_names_a_receiver.<locals>.receiver" in caplog.text


@pytest.mark.parametrize(("base", "names"), [(AddingTask, []), (SendingTask, [f"{__name__}.SendingTask.apply_async"])])
def test_the_class_of_the_tasks_is_judged_by_what_it_overrides(app: Celery, base: type, names: list[str]) -> None:
    """A class that only adds methods, as that of Django, changes nothing; one that overrides ``apply_async`` does."""
    task = type("Based", (EventTask, base), {"name": "t.based", "run": lambda self, event: None})()
    assert interceptors(app, app.register_task(task)) == names


@pytest.mark.parametrize("where", ["its class", "the object"])
def test_an_application_that_overrides_send_task_is_called(
    settings: BridgeSettings, app: Celery, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery makes each message of an application that overrides ``send_task``, in its class or in the object."""
    other = Shop("tests", broker=app.conf.broker_url, set_as_current=False)
    if where == "the object":
        other = Celery("tests", broker=app.conf.broker_url, set_as_current=False)
        vars(other)["send_task"] = lambda *_, **__: None
    other.finalize()
    outbox = Outbox(other, settings)
    assert not outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1").stamped
    assert __name__ in caplog.text
    outbox.close()

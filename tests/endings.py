"""A Celery application whose handlers end in every way, each with every kind of hooks that users write.

The workers of ``test_endings.py`` run it. Each run of a handler is one RPUSH to a list in Redis.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pydantic import BaseModel

import bridge
from bridge import Event, EventTask, get_bus, on_event

PREFIX = os.environ.get("BRIDGE_CHANNEL_PREFIX", "test:")
RUNS = f"{PREFIX}runs"

#: Set while ``__call__`` of the application's task class runs a handler.
in_context: ContextVar[bool] = ContextVar("in_context", default=False)


def failing(self: Task[Any, Any], *args: Any) -> None:
    """Fail, as a hook that Celery calls after the handler has returned or failed."""
    raise RuntimeError("in a hook")


class ApplicationTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """The task class of the application: a context, as Flask has it, with hooks that fail."""

    abstract = True

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        token = in_context.set(True)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            in_context.reset(token)

    on_success = on_failure = on_retry = after_return = failing


app = Celery("endings", task_cls=ApplicationTask)
app.conf.update(
    broker_url=os.environ.get("REDIS_URL"),
    result_backend=os.environ.get("TEST_RESULTS") or os.environ.get("REDIS_URL"),
    broker_transport_options={"global_keyprefix": f"broker:{PREFIX}"},
    result_backend_transport_options={"global_keyprefix": f"broker:{PREFIX}", "retry_policy": {"max_retries": 0}},
    redis_retry_on_timeout=False,
    redis_socket_connect_timeout=0.2,
    bridge_group="endings",
    worker_hijack_root_logger=False,
)
bridge.install(app)


class Silent(EventTask):
    """Hooks as in Celery's manual, without ``super()``."""

    abstract = True

    def before_start(self, *args: Any) -> None: ...
    def on_success(self, *args: Any) -> None: ...
    def on_failure(self, *args: Any) -> None: ...
    def on_retry(self, *args: Any) -> None: ...
    def after_return(self, *args: Any) -> None: ...


class Failing(EventTask):
    """Hooks that fail after the handler has returned or failed."""

    abstract = True

    on_success = on_failure = on_retry = after_return = failing


class Aborting(EventTask):
    """Hooks that raise what is no ``Exception``."""

    abstract = True

    def on_success(self, *args: Any) -> None:
        raise asyncio.CancelledError

    def on_failure(self, *args: Any) -> None:
        raise asyncio.CancelledError

    def on_retry(self, *args: Any) -> None:
        raise asyncio.CancelledError

    def after_return(self, *args: Any) -> None:
        raise SystemExit(3)


class NotStarting(EventTask):
    """A hook that fails before the handler is called."""

    abstract = True

    def before_start(self, *args: Any) -> None:
        raise ValueError("in before_start")


class Payload(BaseModel):
    number: int


class Unspeakable(Exception):
    """An error that has no text and cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("in __str__")


def run(event: Event) -> None:
    expected = event.type.endswith(".application")
    get_bus().client.rpush(RUNS, event.type if in_context.get() == expected else f"{event.type} in a wrong context")


def raising(error: Callable[[], BaseException]) -> Callable[[Event], None]:
    def handler(event: Event) -> None:
        run(event)
        raise error()

    return handler


def ok(event: Event) -> None:
    run(event)


def retried(self: EventTask, event: Event) -> None:
    run(event)
    raise self.retry(exc=ValueError("as intended"))


def retried_once(self: EventTask, event: Event) -> None:
    run(event)
    if not self.request.retries:
        raise self.retry()


def retried_without_raising(self: EventTask, event: Event) -> None:
    run(event)
    if not self.request.retries:
        self.retry(countdown=0.2, throw=False)


def failing_after_a_retry(self: EventTask, event: Event) -> None:
    run(event)
    if not self.request.retries:
        self.retry(countdown=0.2, throw=False)
        raise ValueError("as intended")


def retried_in_a_try(self: EventTask, event: Event) -> None:
    run(event)
    if not self.request.retries:
        with suppress(Exception):
            self.retry()


def retried_at_a_time(self: EventTask, event: Event) -> None:
    run(event)
    if not self.request.retries:
        raise self.retry(eta=datetime.now(UTC).replace(tzinfo=None))


def typed(event: Event[Payload]) -> None:
    run(event)


def opaque(event: Event) -> object:
    """Return a value that no result backend can store."""
    run(event)
    return object()


def too_long(event: Event) -> None:
    run(event)
    time.sleep(30)


def killed(event: Event) -> None:
    run(event)
    os.kill(os.getpid(), signal.SIGKILL)


#: The ways in which a handler ends: its function, its options, how often it runs, and the reason of its dead letter.
WAYS: dict[str, tuple[Callable[..., object], dict[str, Any], int, str | None]] = {
    "ok": (ok, {}, 1, None),
    "opaque": (opaque, {}, 1, None),
    "ignore": (raising(Ignore), {}, 1, None),
    "reject": (raising(lambda: Reject("no")), {}, 1, "rejected"),
    "error": (raising(lambda: ValueError("as intended")), {}, 1, "failure"),
    "throws": (raising(lambda: ValueError("as intended")), {"throws": (ValueError,)}, 1, "failure"),
    "unspeakable": (raising(Unspeakable), {}, 1, "failure"),
    "cancelled": (raising(asyncio.CancelledError), {}, 1, "failure"),
    "exit": (raising(lambda: SystemExit(1)), {}, 1, "failure"),
    "interrupt": (raising(KeyboardInterrupt), {}, 1, "failure"),
    "memory": (raising(MemoryError), {}, 1, "failure"),
    "soft": (raising(SoftTimeLimitExceeded), {}, 1, "failure"),
    "early": (raising(lambda: ValueError("as intended")), {"acks_late": False}, 1, "failure"),
    "retry": (retried, {"bind": True, "max_retries": 1, "default_retry_delay": 0}, 2, "failure"),
    "second": (retried_once, {"bind": True, "max_retries": 1, "default_retry_delay": 0}, 2, None),
    "quietly": (retried_without_raising, {"bind": True}, 2, None),
    "failing_later": (failing_after_a_retry, {"bind": True}, 2, None),
    "suppressed": (retried_in_a_try, {"bind": True, "default_retry_delay": 0}, 2, None),
    "at_time": (retried_at_a_time, {"bind": True}, 2, None),
    "auto": (
        raising(lambda: ValueError("as intended")),
        {"autoretry_for": (ValueError,), "max_retries": 1, "default_retry_delay": 0},
        2,
        "failure",
    ),
    "payload": (typed, {}, 0, "payload"),
}
#: The ways of which only a pool of processes knows: it has time limits.
LIMITED: dict[str, tuple[Callable[..., object], dict[str, Any], int, str | None]] = {
    "softly": (too_long, {"soft_time_limit": 1}, 1, "failure"),
    "hard": (too_long, {"time_limit": 1}, 1, "failure"),
    "killed": (killed, {"reject_on_worker_lost": False}, 1, "worker_lost"),
}
HOOKS: dict[str, type[EventTask] | None] = {
    "none": EventTask,
    "silent": Silent,
    "failing": Failing,
    "aborting": Aborting,
    "annotated": EventTask,
    "application": None,
}
#: A pool replaces each process that it kills, which takes a while. So there are few of these.
LIMITED_HOOKS = ("none", "aborting", "application")
app.conf.task_annotations = {
    f"annotated.{way}": {name: lambda *args: None for name in ("on_failure", "on_success", "on_retry", "after_return")}
    for way in WAYS
}
for _hooks, _base in HOOKS.items():
    for _way, (_function, _options, _, _) in (WAYS | LIMITED if _hooks in LIMITED_HOOKS else WAYS).items():
        on_event(f"{_way}.{_hooks}", name=f"{_hooks}.{_way}", base=_base, **_options)(_function)
on_event("ok.not_starting", name="not_starting.ok", base=NotStarting)(ok)

"""Which event caused the code that runs now, in a handler and in the subtasks it starts.

A handler task has its event as its argument. Subtasks (``other.delay()``, chains, groups, chords) get the cause in
a message header, which Celery hands on as an attribute of the request; a task passes it to the tasks it starts in
turn. So everything published along the way joins the chain of the first event.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, replace
from typing import Any

from celery.signals import before_task_publish

from bridge.bus.run_state import current_request, run_state
from bridge.events import Cause, Event

#: Message header that carries the cause; an attribute of the request in the task that receives it.
CAUSE_HEADER = "bridge_cause"
#: Name of our receiver of ``before_task_publish``, so that the dispatcher can tell it from others.
PROPAGATOR = "bridge.propagate_cause"

#: Derives event ids from task ids; any fixed UUID serves, this one must never change.
_EVENT_IDS = uuid.UUID("7f2c1a52-3f0e-4c0b-9d54-0a4d5f0b8e11")

_current: ContextVar[Event[Any] | None] = ContextVar("bridge_current_event", default=None)


def current_event() -> Event[Any] | None:
    """Return the event the running handler was called with; None outside a handler."""
    return _current.get()


@contextmanager
def handling(event: Event[Any]) -> Iterator[None]:
    """Make *event* the current one for the time of the block."""
    token = _current.set(event)
    try:
        yield
    finally:
        _current.reset(token)


def current_cause() -> Cause | None:
    """Return the cause of whatever is published now: from the handler's event, or from the task's header."""
    event, request = current_event(), current_request()
    if event is not None:
        task_id = getattr(request, "id", None)
        return replace(event.cause, task_id=task_id or "")
    header = getattr(request, CAUSE_HEADER, None)
    return Cause(**header) if isinstance(header, dict) else None


@contextmanager
def next_event_id(event_type: str) -> Iterator[str | None]:
    """Yield the id of the next event of this type that the running task publishes; None outside a task.

    It follows from the task's id, the type, and how many of that type this run has published before. So a task
    that runs again, retried or redelivered, publishes under the same ids, and the bus drops the repetitions. Only
    a block that ends without an error counts: a publication that failed is tried again under the same id.
    """
    request = current_request()
    if request is None or request.id is None:
        yield None
        return
    published = run_state(request).published
    yield event_id_for(request.id, event_type, published[event_type])
    published[event_type] += 1


def event_id_for(task_id: str, event_type: str, order: int) -> str:
    """Return the id of the event of this type that a task publishes as its *order*-th, counted from 0."""
    return str(uuid.uuid5(_EVENT_IDS, f"{task_id}:{event_type}:{order}"))


def other_event_id_for(event_id: str, digest: str) -> str:
    """Return the id of an event that takes the place of *event_id* when its task runs again, by its content."""
    return str(uuid.uuid5(_EVENT_IDS, f"{event_id}:{digest}"))


def install_propagation() -> None:
    """Let tasks hand their cause on to the tasks they start. May be called again."""
    before_task_publish.connect(_propagate_cause, weak=False, dispatch_uid=PROPAGATOR)


def _propagate_cause(headers: dict[str, Any] | None = None, **_: Any) -> None:
    cause = current_cause()
    if cause is not None and headers is not None:
        headers.setdefault(CAUSE_HEADER, asdict(cause))

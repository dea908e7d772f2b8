"""Causation: which event caused the running code, in a handler and in the subtasks that it starts.

The task of a handler has its event as its argument. Subtasks (``other.delay()``, chains, groups, chords) get the cause
in a message header, which Celery makes an attribute of their request, and pass it on to the tasks that they start. So
every event that is published on the way joins the chain of the first event.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, fields, replace
from typing import Any

from celery.signals import before_task_publish

from bridge.bus.run_state import current_request, run_state
from bridge.events import Cause, Event

#: Message header with the cause, and attribute of the request in the task that receives it.
CAUSE_HEADER = "bridge_cause"
#: Name of the receiver of ``before_task_publish``, by which the dispatcher distinguishes it from others.
PROPAGATOR = "bridge.propagate_cause"

#: Namespace of event ids that are derived from task ids. It must never change.
_EVENT_IDS = uuid.UUID("7f2c1a52-3f0e-4c0b-9d54-0a4d5f0b8e11")

_current: ContextVar[Event[Any] | None] = ContextVar("bridge_current_event", default=None)


def current_event() -> Event[Any] | None:
    """Return the event that the running handler was called with; None outside a handler."""
    return _current.get()


@contextmanager
def handling(event: Event[Any]) -> Iterator[None]:
    """Make *event* the current event within the block."""
    token = _current.set(event)
    try:
        yield
    finally:
        _current.reset(token)


def current_cause() -> Cause | None:
    """Return the cause of an event that is published now, from the handler's event or from the task's header."""
    event, request = current_event(), current_request()
    if event is not None:
        task_id = getattr(request, "id", None)
        return replace(event.cause, task_id=task_id or "")
    header = getattr(request, CAUSE_HEADER, None)
    return _cause_in(header) if isinstance(header, dict) else None


def _cause_in(header: dict[str, Any]) -> Cause | None:
    """Return the cause in this header, which another version may have written; None if what it needs is missing."""
    known = {field.name: header[field.name] for field in fields(Cause) if field.name in header}
    with suppress(TypeError):
        return Cause(**known)
    return None


@contextmanager
def next_event_id(event_type: str) -> Iterator[str | None]:
    """Yield the id of the next event of this type that the running task publishes; None outside a task.

    It is derived from the task id, the type, and the number of events of that type that this run has published. So a
    task that runs again, because it is retried or redelivered, publishes under the same ids, and the bus drops the
    duplicates. Only a block that ends without an error counts: a failed publication is retried under the same id.
    """
    request = current_request()
    if request is None or request.id is None:
        yield None
        return
    published = run_state(request).published
    yield event_id_for(request.id, event_type, published[event_type])
    published[event_type] += 1


def event_id_for(task_id: str, event_type: str, order: int) -> str:
    """Return the id of the *order*-th event of this type that a task publishes, counted from 0."""
    return str(uuid.uuid5(_EVENT_IDS, f"{task_id}:{event_type}:{order}"))


def other_event_id_for(event_id: str, digest: str) -> str:
    """Return the id of a different event that a later run of the task publishes in the place of *event_id*."""
    return str(uuid.uuid5(_EVENT_IDS, f"{event_id}:{digest}"))


def install_propagation() -> None:
    """Make tasks pass their cause on to the tasks that they start. Can be called more than once."""
    before_task_publish.connect(_propagate_cause, weak=False, dispatch_uid=PROPAGATOR)


def _propagate_cause(headers: dict[str, Any] | None = None, **_: Any) -> None:
    cause = current_cause()
    if cause is not None and headers is not None:
        headers.setdefault(CAUSE_HEADER, asdict(cause))

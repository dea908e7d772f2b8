"""Causation: which event caused the running code, in a handler and in the subtasks that it starts.

The task of a handler has its event as its argument. Subtasks (``other.delay()``, chains, groups, chords) get the cause
in a message header, which Celery makes an attribute of their request, and pass it on to the tasks that they start. So
every event that is published on the way joins the chain of the first event.
"""

from __future__ import annotations

import logging
import math
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, fields, replace
from typing import Any

from celery.signals import before_task_publish

from bridge.bus.run_state import run_state
from bridge.bus.running import Origin, origin
from bridge.events import Cause, Event, TraceContext, parent_of
from bridge.telemetry import Action, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Message header with the cause. The request of the task that receives it has it among its ``headers``.
CAUSE_HEADER = "bridge_cause"
#: Name of the receiver of ``before_task_publish``, by which the dispatcher distinguishes it from others.
PROPAGATOR = "bridge.propagate_cause"

#: Namespace of event ids that are derived from task ids. It must never change.
_EVENT_IDS = uuid.UUID("7f2c1a52-3f0e-4c0b-9d54-0a4d5f0b8e11")

_throttle = LogThrottle(math.inf)  # once in each process
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


def inherited_trace() -> TraceContext | None:
    """Return the trace that what a handler publishes continues if its process is not traced itself."""
    event = current_event()
    return None if event is None else parent_of(event.metadata)


def current_cause() -> Cause | None:
    """Return the cause of what is published now, from the handler's event or from the task's header."""
    return cause_at(origin())


def cause_at(found: Origin) -> Cause | None:
    """Return the cause of what the code publishes that belongs to the task that was *found*.

    If several tasks are possible, it has only the number of hops, so that a chain of events ends.
    """
    event = current_event()
    if event is not None:
        return replace(event.cause, task_id=getattr(found.request, "id", None) or "")
    if not found.candidates:
        return None if found.request is None else _cause_of(found.request)
    if _throttle.allow():
        extra = log_fields(Action.PUBLISHING_TASK_UNKNOWN)
        text = (
            "Thread %s publishes an event or sends a task, and which task has started the thread is not known (%d are "
            "possible): the event has no cause, and is published again when the task runs again. Run the code of the "
            "thread with contextvars.copy_context().run(), or pass id= to publish_event()"
        )
        log.warning(text, threading.current_thread().name, len(found.candidates), extra=extra)
    causes = [_cause_of(request) for request in found.candidates]
    return Cause("", "", max(-1 if cause is None else cause.hops for cause in causes))


def _cause_of(request: Any) -> Cause | None:
    event = run_state(request).event
    if event is not None:
        return replace(event.cause, task_id=request.id or "")
    header = (request.headers or {}).get(CAUSE_HEADER)
    return _cause_in(header) if isinstance(header, dict) else None


def _cause_in(header: dict[str, Any]) -> Cause | None:
    """Return the cause in this header, which another version may have written; None if what it needs is missing."""
    known = {field.name: header[field.name] for field in fields(Cause) if field.name in header}
    with suppress(TypeError):
        return Cause(**known)
    return None


@contextmanager
def next_event_id(found: Origin, event_type: str, payload: Any) -> Iterator[str | None]:
    """Yield the id of the next event of this type that a task publishes; None outside a task.

    It is derived from the task id, the type, and the number of events of that type that this run has published. So a
    task that runs again, because it is retried or redelivered, publishes under the same ids, and the bus drops the
    duplicates. Other threads of the task publish in any order: there the id is derived from the payload as well, and
    from the number of events with that payload. Only a block that ends without an error counts: a failed publication is
    retried under the same id.
    """
    request = found.request
    if request is None or request.id is None:
        yield None
        return
    key = event_type if found.ordered else f"{event_type}:{Event(type=event_type, payload=payload).digest}"
    with run_state(request).published.take(key) as number:
        yield event_id_for(request.id, key, number)


def event_id_for(task_id: str, key: str, number: int) -> str:
    """Return the id of the event with this *number*, from 0, of those that a task publishes under the same *key*.

    The key is the type of the event; in another thread than that of the task, with a hash of its content.
    """
    return str(uuid.uuid5(_EVENT_IDS, f"{task_id}:{key}:{number}"))


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

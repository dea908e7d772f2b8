"""``publish_event()``: publish from a task, or from anywhere, on the bus of this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from celery import Celery
from celery.app import app_or_default

from bridge.bus.bus import EventBus
from bridge.bus.causation import current_cause, next_event_id, other_event_id_for
from bridge.bus.local import Publication
from bridge.config import BridgeSettings
from bridge.events import caused_by

_lock = threading.Lock()
_buses: WeakKeyDictionary[Celery, EventBus] = WeakKeyDictionary()
_made_for: WeakKeyDictionary[EventBus, dict[Callable[[EventBus], Any], Any]] = WeakKeyDictionary()

T = TypeVar("T")


def get_bus() -> EventBus:
    """Return this process's bus for the current Celery application, made with the first call.

    Raises:
        SettingsError: A setting is unknown or does not fit.
    """
    app = app_or_default()
    with _lock:
        bus = _buses.get(app)
        if bus is None:
            bus = _buses[app] = EventBus(BridgeSettings.load(app))
        return bus


def per_bus(make: Callable[[EventBus], T]) -> T:
    """Return what *make* makes of this process's bus, such as the leases of its tasks; made once for each bus.

    The result must not refer to the bus itself, which would keep both of them alive.

    Raises:
        SettingsError: As :func:`get_bus`.
    """
    bus = get_bus()  # after a fork another one: nothing of the parent's is used
    with _lock:
        made = _made_for.setdefault(bus, {})
        if make not in made:
            made[make] = make(bus)
        result: T = made[make]
    return result


def publish_event(type: str, payload: Any = None, *, id: str | None = None, **fields: Any) -> Publication:
    """Publish an event on the bus of this process.

    Inside a task the event joins the chain of the one that started the task: it carries the correlation id on
    and records cause and hops, also in the subtasks of a handler. Its id is derived from the task's id, the type
    and the order of publication, so that a task that runs again publishes nothing twice. Should it publish something
    else the second time, that is an event of its own.

    Arguments:
        type: What happened, e.g. ``dream.summarised``.
        payload: Any JSON; pydantic models, datetimes, UUIDs and Decimals are converted.
        id: Idempotency key of the event; give one where order does not identify it.
        fields: Any other field of :class:`Event`.

    Returns:
        The event as it went out, and whether its id had been published before.

    Raises:
        InvalidEvent: The event breaks the wire format or a limit.
        HopLimitExceeded: The chain is longer than ``max_hops``.
        BusUnavailable: Redis did not take it, after bounded retries.
    """
    if id is not None:
        return _publish(type, payload, fields | {"id": id})
    with next_event_id(type) as derived_id:
        if derived_id is None:
            return _publish(type, payload, fields)
        publication = _publish(type, payload, fields | {"id": derived_id})
        if publication.conflict:
            # An earlier run of this task has published something else here; both are events.
            other_id = other_event_id_for(derived_id, publication.event.digest)
            publication = _publish(type, payload, fields | {"id": other_id})
        return publication


def _publish(type: str, payload: Any, fields: dict[str, Any]) -> Publication:
    return get_bus().publish(caused_by(current_cause(), type, payload, **fields))


def _forget_parents_buses() -> None:
    # A forked child must not touch its parent's sockets, nor a lock another thread held at the fork.
    global _lock, _buses, _made_for  # noqa: PLW0603  # all belong to the process, and this is a new one
    _lock = threading.Lock()
    _buses = WeakKeyDictionary()
    _made_for = WeakKeyDictionary()


os.register_at_fork(after_in_child=_forget_parents_buses)

"""``publish_event()`` and ``get_bus()``: the bus of this process, in tasks and anywhere else."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from celery import Celery
from celery.app import app_or_default

from bridge.bus.bus import EventBus
from bridge.bus.causation import cause_at, next_event_id, other_event_id_for
from bridge.bus.local import Publication
from bridge.bus.run_state import run_state
from bridge.bus.running import Origin, origin
from bridge.config import BridgeSettings, hidden_address, is_fallback
from bridge.errors import AddressMissing
from bridge.events import caused_by
from bridge.telemetry import Action, continuing, log_fields

log = logging.getLogger(__name__)

_lock = threading.Lock()
_buses: WeakKeyDictionary[Celery, EventBus] = WeakKeyDictionary()
_made_for: WeakKeyDictionary[EventBus, dict[Callable[[EventBus], Any], Any]] = WeakKeyDictionary()

T = TypeVar("T")


def get_bus() -> EventBus:
    """Return this process's bus for the current Celery application. The first call creates it.

    Raises:
        SettingsError: A setting is unknown or invalid, or nothing says where the bus is: neither an application that
            this process has imported, nor the environment.
    """
    app = app_or_default()
    with _lock:
        bus = _buses.get(app)
        if bus is None:
            bus = _buses[app] = EventBus(_settings_of(app))
        return bus


def _settings_of(app: Celery) -> BridgeSettings:
    try:
        settings = BridgeSettings.load(app)
    except AddressMissing:
        if not is_fallback(app):
            raise
        raise AddressMissing(
            "this process has no Celery application that says where the bus is: import the module that makes yours and "
            "calls bridge.install(app), before you publish; or set BRIDGE_REDIS_URL or REDIS_URL in the environment, "
            "for example to redis://localhost:6379/0"
        ) from None
    # Subscribers report this too, but not of a program that only publishes, perhaps to a server that nobody reads.
    if hidden := hidden_address(app, settings.url, settings.redacted_url):
        extra = log_fields(Action.STARTUP_CHECK_FAILED, setting=hidden.setting)
        log.warning("%s: %s; %s", *hidden, extra=extra)
    if app.conf.task_always_eager:
        text = (
            "task_always_eager is on: tasks run where they are called, but publish_event() calls no handler. Events go "
            "to the bus, and subscribers of other processes dispatch them; in a test, call the handler with an event"
        )
        log.warning(text, extra=log_fields(Action.STARTUP_CHECK_FAILED, setting="task_always_eager"))
    return settings


def per_bus(make: Callable[[EventBus], T]) -> T:
    """Return *make* of this process's bus, such as the leases of its tasks. It is called once for each bus.

    The result must not refer to the bus itself, or neither of them would ever be freed.

    Raises:
        SettingsError: As :func:`get_bus`.
    """
    bus = get_bus()  # another one after a fork: nothing of the parent process is used
    with _lock:
        made = _made_for.setdefault(bus, {})
        if make not in made:
            made[make] = make(bus)
        result: T = made[make]
    return result


def publish_event(type: str, payload: Any = None, *, id: str | None = None, **fields: Any) -> Publication:
    """Publish an event on the bus of this process.

    Inside a task, also in a subtask of a handler, the event joins the chain of the event that started the task: it
    inherits the correlation id and records its cause and the number of hops. Its id is derived from the task id, the
    type and the order of publication, so that a task that runs again publishes nothing twice. If the second run
    publishes a different event in that place, it is published as a new event: for example if the payload has a time, or
    if the order has changed. In other threads of the task the id is derived from the payload, not from the order.

    Arguments:
        type: What happened, e.g. ``dream.summarised``.
        payload: Any JSON; pydantic models, datetimes, UUIDs and Decimals are converted.
        id: Idempotency key of the event, for a task whose order of publication varies.
        fields: Any other field of :class:`Event`.

    Returns:
        The event as it was published, and whether its id had been published before.

    Raises:
        InvalidEvent: The event violates the wire format or a limit.
        HopLimitExceeded: The chain is longer than ``max_hops``.
        BusUnavailable: Redis did not accept the event, after bounded retries. Publishing it again is safe.
        NotReplicated: Redis has the event, but fewer than ``wait_replicas`` replicas do.
        SettingsError: As :func:`get_bus`.
    """
    found = origin()
    if id is not None:
        return _publish(found, type, payload, fields | {"id": id})
    with next_event_id(found, type, payload) as derived_id:
        if derived_id is None:
            return _publish(found, type, payload, fields)
        publication = _publish(found, type, payload, fields | {"id": derived_id})
        if publication.conflict:
            # An earlier run of this task has published a different event under this id. Both are published.
            other_id = other_event_id_for(derived_id, publication.event.digest)
            publication = _publish(found, type, payload, fields | {"id": other_id})
        return publication


def _publish(found: Origin, type: str, payload: Any, fields: dict[str, Any]) -> Publication:
    event = caused_by(cause_at(found), type, payload, **fields)
    with continuing(None if found.request is None else run_state(found.request).trace):
        return get_bus().publish(event)


def _forget_parents_buses() -> None:
    # A forked child must not use its parent's sockets, nor a lock that another thread held at the time of the fork.
    global _lock, _buses, _made_for  # noqa: PLW0603  # the state of a process, and this is a new one
    _lock = threading.Lock()
    _buses = WeakKeyDictionary()
    _made_for = WeakKeyDictionary()


os.register_at_fork(after_in_child=_forget_parents_buses)

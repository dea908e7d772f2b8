"""A bus within one process: handlers by pattern, and a bounded memory of published events."""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bridge.errors import InvalidEvent
from bridge.events import NO_REDACTION, Event, Redaction, compile_pattern
from bridge.telemetry import Action, log_fields, redacting_errors

log = logging.getLogger(__name__)

LocalHandler = Callable[[Event], object]
_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Publication:
    """The result of a publication.

    Arguments:
        event: The event as it was published, or would have been.
        duplicate: The id was published before, so nothing was done: no handler was called, nothing was written.
        conflict: The earlier event with this id has a different type or payload, and is kept. Known only with
            ``enable_persistence``.
    """

    event: Event
    duplicate: bool
    conflict: bool = False


class LocalBus:
    """Publish and subscribe within one process. Thread-safe.

    Arguments:
        max_events: Number of events that are kept for :meth:`get_event`; the oldest are dropped first.
        max_event_bytes: Maximum size of an encoded event.
        redaction: Which values of an event must not appear in log lines about errors of its handlers.
        max_store_bytes: Total size of the events that are kept for :meth:`get_event`.
        max_ids: Number of ids that are remembered to recognise duplicates; far more than broadcasts are on their way
            back to this process.
    """

    def __init__(
        self,
        max_events: int = 1000,
        max_event_bytes: int = 1024 * 1024,
        redaction: Redaction = NO_REDACTION,
        *,
        max_store_bytes: int = 16 * 1024 * 1024,
        max_ids: int = 65_536,
    ) -> None:
        self._max_events = max_events
        self._max_event_bytes = max_event_bytes
        self._redaction = redaction
        self._max_store_bytes = max_store_bytes
        self._max_ids = max_ids
        self._lock = threading.Lock()
        self._handlers: list[tuple[re.Pattern[str], LocalHandler]] = []
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._store: OrderedDict[str, bytes] = OrderedDict()
        self._store_bytes = 0

    def subscribe(self, pattern: str, handler: LocalHandler) -> Callable[[], None]:
        """Call *handler* with every event whose type matches *pattern*, a Redis glob such as ``dream.*``.

        Returns:
            A function that ends the subscription.

        Raises:
            ValueError: The pattern cannot match any event type.
        """
        entry = (compile_pattern(pattern), handler)
        with self._lock:
            self._handlers.append(entry)

        def unsubscribe() -> None:
            with self._lock:
                self._handlers = [other for other in self._handlers if other is not entry]

        return unsubscribe

    def publish(self, event: Event | Mapping[str, Any] | str, payload: Any = None, **fields: Any) -> Publication:
        """Publish an event, given as an :class:`Event`, as a mapping of its fields, or as its type, payload and fields.

        Handlers are called in this thread before the method returns. If one raises an error, it is logged and the
        others are still called.

        Raises:
            InvalidEvent: The event violates the wire format or a limit.
        """
        event = as_event(event, payload, fields)
        data = event.encode(max_bytes=self._max_event_bytes)
        if not self.remember(event.id):
            return Publication(event, duplicate=True)
        self.deliver(event, data)
        return Publication(event, duplicate=False)

    def get_event(self, event_id: str) -> Event | None:
        """Return the published event with this id; None if it is unknown or was dropped."""
        with self._lock:
            data = self._store.get(event_id)
        return None if data is None else Event.decode(data, max_bytes=len(data))

    def remember(self, event_id: str) -> bool:
        """Remember that the event with this id was published; return False if that was known already."""
        with self._lock:
            if event_id in self._ids:
                return False
            self._ids[event_id] = None
            if len(self._ids) > self._max_ids:
                self._ids.popitem(last=False)
            return True

    def forget(self, event_id: str) -> None:
        """Forget that the event with this id was published, because its publication has failed."""
        with self._lock:
            self._ids.pop(event_id, None)

    def deliver(self, event: Event, data: bytes) -> None:
        """Keep *event*, encoded in *data*, for :meth:`get_event` and call the handlers that match its type."""
        with self._lock:
            self._store_bytes += len(data) - len(self._store.pop(event.id, b""))
            self._store[event.id] = data
            while self._store and (len(self._store) > self._max_events or self._store_bytes > self._max_store_bytes):
                _, forgotten = self._store.popitem(last=False)
                self._store_bytes -= len(forgotten)
            handlers = [handler for pattern, handler in self._handlers if pattern.fullmatch(event.type)]
        for handler in handlers:
            try:
                with redacting_errors(self._redaction, event.to_dict() if self._redaction else {}):
                    handler(event)
            except Exception:  # user code; its error must not affect the other handlers
                name = getattr(handler, "__qualname__", type(handler).__qualname__)
                extra = log_fields(Action.LOCAL_HANDLER_FAILED, event_id=event.id, event_type=event.type, handler=name)
                log.exception("Local handler %s failed for event %s (%s)", name, event.id, event.type, extra=extra)


def as_event(
    event: Event | Mapping[str, Any] | str, payload: Any = None, fields: Mapping[str, Any] = _NO_FIELDS
) -> Event:
    """Return the event that the arguments of ``publish`` describe.

    Raises:
        InvalidEvent: An event is given together with a payload or fields, a field is invalid, or it is something else.
    """
    if isinstance(event, str):
        return Event(type=event, payload=payload, **fields)
    if payload is not None or fields:
        raise InvalidEvent("event", "", "publish() takes either an event alone, or a type with payload and fields")
    if isinstance(event, Event):
        return event
    if isinstance(event, Mapping):
        return Event.model_validate(dict(event))
    text = f"publish() takes an Event, a mapping with at least a type, or a type, not {type(event).__name__}"
    raise InvalidEvent("event", "", text)

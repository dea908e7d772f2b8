"""The event bus on Redis, for any program, with or without Celery."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from itertools import islice
from typing import Any, Self, TypeVar

from bridge.bus.admission import Admission
from bridge.bus.causation import inherited_trace
from bridge.bus.listener import ChannelListener, ReceivedBatch
from bridge.bus.local import LocalBus, LocalHandler, Publication, as_event
from bridge.bus.running import runs_tasks
from bridge.config import BATCH_BYTES, BridgeSettings
from bridge.errors import BridgeError, BusUnavailable, HopLimitExceeded, InvalidEvent
from bridge.events import TRACEPARENT, EncodedEvent, Event, Keyring, TraceContext, with_context
from bridge.redis import attempt, connect
from bridge.storage import AppendResult, Storage, new_attempt
from bridge.telemetry import Action, Counters, Span, continuing, log_fields, publish_span

log = logging.getLogger(__name__)

T = TypeVar("T")

_UNCONFIRMED = "It may have been published; publishing it again under the same id is safe."
#: How long subscribe() waits for Redis to confirm, and close() for the listening thread, in seconds.
_LISTENER_WAIT_S = 5.0


class EventBus:
    """The bus of one process. Thread-safe; must not be used across a fork.

    Publishing writes the event key and the journal entry and sends the broadcast, atomically and in one round trip.
    Local handlers are called once for each event: for those of this process before ``publish`` returns, for those of
    other processes in a listening thread. They receive only what is broadcast while the bus is subscribed. Events that
    must not be missed need a Celery handler, see :func:`bridge.on_event`.

    Arguments:
        settings: Read from the environment by default.
        log_conflicts: Whether to log a publication whose id belongs to another event; False is for callers that check
            :attr:`Publication.conflict` themselves.
        explicit: Single settings by name, instead of *settings*.

    Raises:
        SettingsError: A setting is unknown or invalid.
    """

    def __init__(self, settings: BridgeSettings | None = None, *, log_conflicts: bool = True, **explicit: Any) -> None:
        self.settings = settings if settings is not None else BridgeSettings.load(**explicit)
        #: Calls the handlers of this process, and remembers the events that it has published and received.
        self._local = LocalBus(
            self.settings.local_event_cache_size, self.settings.max_event_bytes, self.settings.redaction
        )
        self.client = connect(self.settings)
        self.storage = Storage(self.client, self.settings)
        self._traced = self.settings.tracing != "off"
        self._log_conflicts = log_conflicts
        self._admission = Admission(self.settings)
        self._keyring = Keyring(self.settings.signing_keys, self.settings.channel_prefix)
        self._stop = threading.Event()
        self._subscribed = threading.Event()
        self._listener: threading.Thread | None = None
        self._lock = threading.Lock()  # of the listener

    def connect(self) -> Self:
        """Check that Redis answers. Optional: the first publication connects as well.

        Raises:
            BusUnavailable: Redis did not answer within ``publish_timeout_s``.
        """
        self._attempt("connecting", self.client.ping)
        return self

    def close(self) -> None:
        """Stop listening and close the connections. Can be called more than once."""
        self._stop.set()
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(_LISTENER_WAIT_S)
        self.client.close()

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def publish(self, event: Event | Mapping[str, Any] | str, payload: Any = None, **fields: Any) -> Publication:
        """Publish an event, given as an :class:`Event`, as a mapping of its fields, or as its type, payload and fields.

        When this returns, the event is stored once, in its key and in the journal (``enable_persistence``), and was
        broadcast (``enable_pubsub``). An event whose id was published before is a duplicate; nothing is done for it.

        Raises:
            InvalidEvent: The event violates the wire format or a limit.
            HopLimitExceeded: The event is more than ``max_hops`` publications away from the start of its chain.
            BusUnavailable: Redis did not confirm the event within ``publish_timeout_s``. It may have been published;
                publishing it again under the same id is safe.
            NotReplicated: Redis has the event, but fewer than ``wait_replicas`` replicas do.
        """
        event = as_event(event, payload, fields)
        with self._span(event) as span:
            return self._publish([event], span)[0]

    def publish_many(self, events: Iterable[Event | Mapping[str, Any]]) -> list[Publication]:
        """Publish many events, ``batch_size`` of them per round trip, or fewer if they are large.

        Raises:
            InvalidEvent, HopLimitExceeded: One event is invalid. Its batch was not written, but earlier ones were.
            BusUnavailable: Redis did not confirm one round trip within ``publish_timeout_s``. Some events may have been
                published. Publishing all of them again is safe.
        """
        remaining = iter(events)
        publications: list[Publication] = []
        with self._span(None) as span:
            while batch := list(islice(remaining, self.settings.batch_size)):
                publications += self._publish([as_event(event) for event in batch], span)
            span.set({"messaging.batch.message_count": len(publications)})
        return publications

    def get_event(self, event_id: str) -> Event | None:
        """Return the event with this id, from Redis or else from the memory of this process; None if it is unknown.

        If another event was published under the id, it was refused as a conflict, and is not returned, even if its
        publisher has written it to the event key.

        Raises:
            InvalidEvent: The key of this id does not hold a valid event, or holds another event than the one that was
                handled, which is no longer retained (``id_conflict``), or the event lacks a required signature.
            BusUnavailable: Redis did not answer, and this process does not remember the event.
        """
        local = self._local.get_event(event_id)
        lookup = self.storage.event_lookup
        try:
            data = self._attempt(f"looking up event {event_id}", lambda: lookup.get(event_id))
        except BusUnavailable:
            if local is None:
                raise
            return local
        return local if data is None else self._admission.look_up(event_id, data)

    def subscribe(self, pattern: str, handler: LocalHandler) -> Callable[[], None]:
        """Call *handler* with every event whose type matches *pattern*, a Redis glob such as ``dream.*``.

        The first subscription starts a thread that listens for the events of other processes. The call returns when
        Redis has confirmed; if Redis is unavailable, it returns after 5 seconds and a thread keeps trying.

        Returns:
            A function that ends the subscription.

        Raises:
            ValueError: The pattern cannot match any event type.
            BridgeError: The bus is closed.
        """
        unsubscribe = self._local.subscribe(pattern, handler)
        if self.settings.enable_pubsub:
            self._listen()
        return unsubscribe

    def _span(self, event: Event | None) -> AbstractContextManager[Span]:
        return publish_span(event) if self._traced else nullcontext(Span())

    def _publish(self, events: Sequence[Event], span: Span) -> list[Publication]:
        trace = (span.context or inherited_trace()) if self._traced else None
        encoded = [self._encode(event, trace) for event in events]
        if len(encoded) == 1:
            return self._publish_encoded(encoded)
        return [one for part in _parts(encoded) for one in self._publish_encoded(part)]

    def _publish_encoded(self, encoded: Sequence[EncodedEvent]) -> list[Publication]:
        # Remembered before they are sent, so that the listening thread recognises the broadcasts of this process.
        new = [self._local.remember(one.event.id) for one in encoded]
        try:
            results = self._send(encoded, new)
        except BaseException:
            for one, is_new in zip(encoded, new, strict=True):
                if is_new:
                    self._local.forget(one.event.id)
            raise
        return [self._published(one, result) for one, result in zip(encoded, results, strict=True)]

    def _published(self, one: EncodedEvent, result: AppendResult) -> Publication:
        if result == "appended":
            self._local.deliver(one.event, one.data)
        elif result == "conflict" and self._log_conflicts:
            event = one.event
            extra = log_fields(Action.EVENT_ID_CONFLICT, event_id=event.id, event_type=event.type)
            text = "Event %s (%s) was not published: another event with this id has a different type or payload."
            log.warning(text, event.id, event.type, extra=extra)
        return Publication(one.event, duplicate=result != "appended", conflict=result == "conflict")

    def _encode(self, event: Event, trace: TraceContext | None) -> EncodedEvent:
        self._admission.check(event)
        if event.hops > self.settings.max_hops:
            raise HopLimitExceeded(event.type, event.hops, self.settings.max_hops)
        if event.source is None:
            event = event.model_copy(update={"source": self.settings.source})
        if trace is not None and (event.metadata or {}).get(TRACEPARENT) is None:  # the caller's own one stays
            traced = event.model_copy(update={"metadata": with_context(event.metadata, trace)})
            with suppress(InvalidEvent):  # an event may be small enough only without the context
                return self._signed(traced)
        return self._signed(event)

    def _signed(self, event: Event) -> EncodedEvent:
        return EncodedEvent.of(event, self._keyring.encode(event, max_bytes=self.settings.max_event_bytes))

    def _send(self, encoded: Sequence[EncodedEvent], new: list[bool]) -> list[AppendResult]:
        first = encoded[0]
        what = (
            f"publishing event {first.id} ({first.type})" if len(encoded) == 1 else f"publishing {len(encoded)} events"
        )
        if self.settings.enable_persistence:
            tokens = [new_attempt() for _ in encoded]
            broadcast = self.settings.enable_pubsub
            do = partial(self.storage.journal.publish, encoded, tokens, broadcast=broadcast)
            return self._attempt(what, do, _UNCONFIRMED)
        if self.settings.enable_pubsub:
            self._attempt(what, lambda: self._broadcast(encoded, new), _UNCONFIRMED)
        return ["appended" if is_new else "repeated" for is_new in new]

    def _attempt(self, what: str, do: Callable[[], T], unconfirmed: str = "") -> T:
        settings = self.settings
        limit_s = settings.task_publish_timeout_s if runs_tasks() else settings.publish_timeout_s
        return attempt(settings, what, do, limit_s=limit_s, unconfirmed=unconfirmed)

    def _broadcast(self, encoded: Sequence[EncodedEvent], new: list[bool]) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            for one, is_new in zip(encoded, new, strict=True):
                if is_new:
                    pipe.publish(self.storage.keys.channel(one.event.type), one.data)
            pipe.execute()

    def _listen(self) -> None:
        if self._stop.is_set():
            raise BridgeError("this EventBus is closed; create another one to subscribe")
        with self._lock:
            if self._listener is None:
                listener = ChannelListener(self.storage, Counters())
                self._listener = threading.Thread(
                    target=listener.run, args=(self._stop, self._on_received), name="bridge-bus", daemon=True
                )
                self._listener.start()
        if not self._subscribed.wait(_LISTENER_WAIT_S):
            extra = log_fields(Action.SUBSCRIPTION_DELAYED)
            text = "Not subscribed to %s yet; retrying in the background."
            log.warning(text, self.settings.redacted_url, extra=extra)

    def _on_received(self, batch: ReceivedBatch) -> None:
        for received in batch.events:
            if self._local.remember(received.id):
                with continuing(received.trace if self._traced else None):
                    self._local.deliver(received.event, received.data)
        if batch.subscribed:
            self._subscribed.set()


def _parts(encoded: Sequence[EncodedEvent]) -> Iterator[Sequence[EncodedEvent]]:
    """Yield the events in parts of about BATCH_BYTES: each has the same time to reach the server."""
    start = size = 0
    for end, one in enumerate(encoded, 1):
        size += len(one.data)
        if size >= BATCH_BYTES or end == len(encoded):
            yield encoded[start:end]
            start, size = end, 0

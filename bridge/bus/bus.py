"""The event bus on Redis: what every program, Celery or not, publishes to and listens on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Self

from bridge.bus.admission import Admission
from bridge.bus.listener import ChannelListener, ReceivedBatch
from bridge.bus.local import LocalBus, LocalHandler, Publication, as_event
from bridge.config import BridgeSettings
from bridge.errors import BridgeError, BusUnavailable, HopLimitExceeded, InvalidEvent
from bridge.events import UNHEARD_SOURCE, EncodedEvent, Event, Keyring
from bridge.redis import attempt, connect, is_wrong_type
from bridge.storage import AppendResult, Storage, new_attempt
from bridge.telemetry import Action, Counters, log_fields

log = logging.getLogger(__name__)

#: Longest wait of subscribe() for Redis to confirm, and of close() for the listening thread.
_LISTENER_WAIT_S = 5.0


class EventBus:
    """The bus of one process; safe for several threads, not to be carried across a fork.

    Publishing writes the event key, the journal entry and the broadcast in one atomic step of one round trip.
    Local handlers hear this process's events before ``publish`` returns, and those of other processes from a
    listening thread, each event once. They hear what is broadcast while they listen; what must not be missed
    belongs into a Celery handler, see :func:`bridge.on_event`.

    Arguments:
        settings: Read from the environment when missing.
        log_conflicts: Whether a publication whose id another event has is logged; False suits callers that look at
            :attr:`Publication.conflict` themselves.
        explicit: Single settings by name, instead of *settings*.

    Raises:
        SettingsError: A setting is unknown or does not fit.
    """

    def __init__(self, settings: BridgeSettings | None = None, *, log_conflicts: bool = True, **explicit: Any) -> None:
        self.settings = settings if settings is not None else BridgeSettings.load(**explicit)
        #: Delivers to the handlers of this process, and remembers what it has published and received.
        self._local = LocalBus(
            self.settings.local_event_cache_size, self.settings.max_event_bytes, self.settings.redaction
        )
        self.client = connect(self.settings)
        self.storage = Storage(self.client, self.settings)
        self._log_conflicts = log_conflicts
        self._admission = Admission(self.settings)
        self._keyring = Keyring(self.settings.signing_keys, self.settings.channel_prefix)
        self._stop = threading.Event()
        self._subscribed = threading.Event()
        self._listener: threading.Thread | None = None
        self._lock = threading.Lock()  # of the listener

    def connect(self) -> Self:
        """Make sure that Redis answers. Optional: the first publication connects too.

        Raises:
            BusUnavailable: It does not, after bounded retries.
        """
        attempt(self.settings, "connecting", self.client.ping)
        return self

    def close(self) -> None:
        """Stop listening and close the connections. May be called again."""
        self._stop.set()
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(_LISTENER_WAIT_S)
        self.client.close()

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def publish(self, event: Event | str, payload: Any = None, **fields: Any) -> Publication:
        """Publish an event: either an :class:`Event`, or its type, payload and further fields.

        When this returns, the event is in its key and in the journal, once, and was broadcast, as far as
        ``enable_persistence`` (key and journal) and ``enable_pubsub`` (broadcast) allow. An id that was
        published before makes a duplicate, for which nothing happens.

        Raises:
            InvalidEvent: The event breaks the wire format or a limit.
            HopLimitExceeded: It is more than ``max_hops`` publications away from the start of its chain.
            BusUnavailable: Redis did not take it, after bounded retries. Publishing the same event again is safe.
            NotReplicated: Redis took it, and fewer than ``wait_replicas`` replicas have it.
        """
        return self._publish([as_event(event, payload, fields)])[0]

    def publish_many(self, events: Iterable[Event]) -> list[Publication]:
        """Publish many events, ``batch_size`` of them per round trip.

        Raises:
            InvalidEvent, HopLimitExceeded: Before anything of the batch with the bad event was written.
            BusUnavailable: Some may have been published. Publishing all of them again is safe.
        """
        remaining = iter(events)
        publications: list[Publication] = []
        while batch := list(islice(remaining, self.settings.batch_size)):
            publications += self._publish(batch)
        return publications

    def get_event(self, event_id: str) -> Event | None:
        """Return an event by its id: from Redis, or else from this process's memory; None when unknown.

        Raises:
            InvalidEvent: What Redis holds under this id is no event, or lacks the signature that it must have.
            BusUnavailable: Redis does not answer and this process does not remember the event.
        """
        local = self._local.get_event(event_id)
        try:
            data = attempt(self.settings, f"looking up event {event_id}", lambda: self.storage.event_keys.get(event_id))
        except BusUnavailable as error:
            if is_wrong_type(error.__cause__):
                raise InvalidEvent("wrong_key_type", "", f"the key of event {event_id} holds no string") from error
            if local is None:
                raise
            return local
        return local if data is None else self._admission.look_up(event_id, data)

    def subscribe(self, pattern: str, handler: LocalHandler) -> Callable[[], None]:
        """Call *handler* with every event whose type matches *pattern*, a Redis glob such as ``dream.*``.

        Starts to listen for other processes with the first subscription and returns once Redis confirmed; if
        Redis is away it returns after some seconds and goes on trying in the background.

        Returns:
            A function that ends the subscription.

        Raises:
            ValueError: The pattern can match nothing.
            BridgeError: The bus was closed.
        """
        unsubscribe = self._local.subscribe(pattern, handler)
        if self.settings.enable_pubsub:
            self._listen()
        return unsubscribe

    def _publish(self, events: Sequence[Event]) -> list[Publication]:
        records = [self._record(event) for event in events]
        # Noted before Redis hears of them, so that the listening thread recognises our own broadcasts.
        new = [self._local.remember(record.event.id) for record in records]
        try:
            outcomes = self._send(records, new)
        except BaseException:
            for record, is_new in zip(records, new, strict=True):
                if is_new:
                    self._local.forget(record.event.id)
            raise
        return [self._published(record, outcome) for record, outcome in zip(records, outcomes, strict=True)]

    def _published(self, record: EncodedEvent, outcome: AppendResult) -> Publication:
        if outcome == "appended":
            self._local.deliver(record.event, record.data)
        elif outcome == "conflict" and self._log_conflicts:
            event = record.event
            extra = log_fields(Action.EVENT_ID_CONFLICT, event_id=event.id, event_type=event.type)
            text = "not published: the id of %r is taken by an event with another type or payload"
            log.warning(text, event, extra=extra)
        return Publication(record.event, duplicate=outcome != "appended", conflict=outcome == "conflict")

    def _record(self, event: Event) -> EncodedEvent:
        self._admission.check(event)
        if event.source == UNHEARD_SOURCE:
            raise InvalidEvent("source", "source", f"{UNHEARD_SOURCE!r} is dropped by the TypeScript bus; name another")
        if event.hops > self.settings.max_hops:
            raise HopLimitExceeded(event.type, event.hops, self.settings.max_hops)
        if event.source is None:
            event = event.model_copy(update={"source": self.settings.source})
        return EncodedEvent.of(event, self._keyring.encode(event, max_bytes=self.settings.max_event_bytes))

    def _send(self, records: Sequence[EncodedEvent], new: list[bool]) -> list[AppendResult]:
        settings = self.settings
        what = f"publishing {records[0].event!r}" if len(records) == 1 else f"publishing {len(records)} events"
        if settings.enable_persistence:
            tokens = [new_attempt() for _ in records]
            broadcast = settings.enable_pubsub
            return attempt(settings, what, lambda: self.storage.journal.publish(records, tokens, broadcast=broadcast))
        if settings.enable_pubsub:
            attempt(settings, what, lambda: self._broadcast(records, new))
        return ["appended" if is_new else "repeated" for is_new in new]

    def _broadcast(self, records: Sequence[EncodedEvent], new: list[bool]) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            for record, is_new in zip(records, new, strict=True):
                if is_new:
                    pipe.publish(self.storage.keys.channel(record.event.type), record.data)
            pipe.execute()

    def _listen(self) -> None:
        if self._stop.is_set():
            raise BridgeError("this bus was closed; make another to subscribe")
        with self._lock:
            if self._listener is None:
                feed = ChannelListener(self.storage, Counters())
                self._listener = threading.Thread(
                    target=feed.run, args=(self._stop, self._on_heard), name="bridge-bus", daemon=True
                )
                self._listener.start()
        if not self._subscribed.wait(_LISTENER_WAIT_S):
            extra = log_fields(Action.SUBSCRIPTION_DELAYED)
            log.warning("no subscription at %s yet, trying on", self.settings.redacted_url, extra=extra)

    def _on_heard(self, heard: ReceivedBatch) -> None:
        for received in heard.events:
            if self._local.remember(received.id):
                self._local.deliver(received.event, received.data)
        if heard.subscribed:
            self._subscribed.set()

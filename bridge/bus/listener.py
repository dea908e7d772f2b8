"""Listening to the event channels, and knowing when something may have been missed.

A pub/sub connection can die in silence, and redis-py subscribes again without a word. So the feed hears its own
heartbeat on the bridge's own channel, and reports every confirmation of the subscription: each one after the first
is a gap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from bridge.bus.admission import Admission
from bridge.config import BATCH_BYTES
from bridge.errors import InvalidEvent
from bridge.events import UNHEARD_SOURCE, EncodedEvent, is_signed
from bridge.redis import BackOff
from bridge.storage import Storage
from bridge.telemetry import Action, Counters, Liveness, log_fields

log = logging.getLogger(__name__)

#: Wait for something to arrive; bounds how fast a stop is noticed.
_IDLE_WAIT_S = 0.2
#: Wait for the rest of a message: redis-py drops a large one whose pieces come with longer pauses than this.
_READ_WAIT_S = 1.0
_MISSED_HEARTBEATS = 3


@dataclass(frozen=True)
class InvalidMessage:
    """Bytes that are no event: where they came from, and why they were refused."""

    origin: str
    data: bytes
    error: InvalidEvent


class Broadcast(NamedTuple):
    """A message as it came, with the event type that its channel names."""

    event_type: str
    data: bytes


@dataclass
class ReceivedBatch:
    """What arrived in one go, messages of these *types*, and whether the subscription began anew."""

    types: list[str] = field(default_factory=list)
    events: list[EncodedEvent] = field(default_factory=list)
    invalid: list[InvalidMessage] = field(default_factory=list)
    subscribed: bool = False

    @property
    def count(self) -> int:
        """How many messages that were."""
        return len(self.types)


class ChannelListener:
    """Every message on the event channels of one bus, read by one thread.

    Arguments:
        storage: Its client's pool supplies the subscribed connection; of its settings: batch size, heartbeat interval.
        counters: Raises ``subscription_gaps`` and ``errors``.
        drop_known: Gets what came and returns what of it is to be decoded. Must not raise.
        liveness: Gets a ``tick`` for every round, and the marks ``received`` and ``gap``.
        types: Globs of the event types whose channels are listened to.
    """

    def __init__(
        self,
        storage: Storage,
        counters: Counters,
        drop_known: Callable[[list[Broadcast]], list[Broadcast]] = list,
        liveness: Liveness | None = None,
        types: Sequence[str] = ("*",),
    ) -> None:
        self._client = storage.client
        self._settings = storage.settings
        self._keys = storage.keys
        self._storage = storage
        self._admission = Admission(storage.settings)
        self._counters = counters
        self._drop_known = drop_known
        self._liveness = liveness or Liveness()
        self._channels = [self._keys.channels(pattern) for pattern in types]
        self._subscriptions = 0

    def run(self, stop: threading.Event, on_batch: Callable[[ReceivedBatch], None]) -> None:
        """Listen until *stop* is set, through lost connections; *on_batch* gets every batch.

        It must not raise. Its first batch says ``subscribed``: from then on nothing is missed silently.
        """
        back_off = BackOff(log, f"lost the event channels at {self._settings.redacted_url}", self._counters, stop)
        while not stop.is_set():
            self._liveness.tick()
            try:
                for heard in self._listen(stop):
                    on_batch(heard)
                    if heard.count:  # more than a subscription, which a dying server grants too
                        back_off.reset()
            except (RedisError, OSError) as error:
                back_off.wait(error)

    def _listen(self, stop: threading.Event) -> Iterator[ReceivedBatch]:
        pubsub: Any = self._client.pubsub()
        try:
            pubsub.subscribe(self._keys.heartbeat)
            pubsub.psubscribe(*self._channels)
            alive_at = beat_at = time.monotonic()
            while not stop.is_set():
                heard, any_sign = self._read(pubsub)
                now = time.monotonic()
                self._liveness.tick()
                if any_sign:
                    alive_at = now
                    self._liveness.mark("received")
                if heard.count or heard.subscribed:
                    heard.events = restore_sources(self._storage, heard.events, self._admission)
                    yield heard
                interval = self._settings.heartbeat_interval_s
                if now - alive_at > _MISSED_HEARTBEATS * interval:
                    raise RedisConnectionError(f"nothing heard for {now - alive_at:.0f} s, not even the own heartbeat")
                if now - max(alive_at, beat_at) > interval:
                    self._client.publish(self._keys.heartbeat, self._settings.client_name)
                    beat_at = now
        finally:
            pubsub.close()

    def _read(self, pubsub: Any) -> tuple[ReceivedBatch, bool]:
        heard, any_sign, size = ReceivedBatch(), False, 0
        broadcasts: list[Broadcast] = []
        connection, prefix = pubsub.connection, self._keys.prefix
        more = connection.can_read(timeout=_IDLE_WAIT_S)
        try:
            while more and len(broadcasts) < self._settings.batch_size and size <= BATCH_BYTES:
                # Not get_message(), which does much more for each of them, and subscribes again in silence.
                reply = connection.read_response(timeout=_READ_WAIT_S)
                any_sign = True
                if reply[0] == b"pmessage":
                    name = reply[2].decode(errors="backslashreplace")
                    broadcasts.append(Broadcast(name.removeprefix(prefix), reply[3]))
                    size += len(reply[3])
                elif reply[0] == b"psubscribe" and reply[1].decode() == self._channels[-1]:
                    self._confirmed(heard)
                more = connection.can_read(timeout=0)
        except (RedisError, OSError):
            if not any_sign:
                raise
            # What was heard goes first: nobody says it again. The next read meets the error again.
        heard.types = [broadcast.event_type for broadcast in broadcasts]
        for broadcast in self._drop_known(broadcasts):
            self._decode(broadcast, heard)
        return heard, any_sign

    def _decode(self, broadcast: Broadcast, heard: ReceivedBatch) -> None:
        event_type, data = broadcast
        try:
            heard.events.append(self._admission.receive(data, event_type))
        except InvalidEvent as error:
            heard.invalid.append(InvalidMessage(self._keys.channel(event_type), data, error))

    def _confirmed(self, heard: ReceivedBatch) -> None:
        heard.subscribed = True
        self._subscriptions += 1
        if self._subscriptions > 1:
            self._counters.add("subscription_gaps")
            self._liveness.mark("gap")
            extra = log_fields(Action.RESUBSCRIBED, count=self._subscriptions - 1)
            text = "subscribed to %s again: events may have been missed"
            log.info(text, ", ".join(self._channels), extra=extra)


def restore_sources(storage: Storage, events: Sequence[EncodedEvent], admission: Admission) -> list[EncodedEvent]:
    """Return *events* with the real source of those the TypeScript bus broadcast, as far as their keys tell.

    That bus writes its own name as the source of every broadcast and keeps the real one in the event key. Key
    and broadcast go out on two connections, so the key may not be there yet: then the source stays. Of a signed
    event the copy in the key takes the place of the other, as it is: it has a signature of its own.
    """
    hidden = [one.id for one in events if one.event.source == UNHEARD_SOURCE]
    if not hidden:
        return list(events)
    try:
        names = [storage.keys.event(event_id) for event_id in hidden]
        beginnings = storage.event_keys.read_prefixes(names)
    except RedisError:
        return list(events)  # better an event without its source than no event
    values = {event_id: value for event_id, (value, _) in zip(hidden, beginnings, strict=True)}
    return [_restored(one, values[one.id], admission) if one.id in values else one for one in events]


def _restored(broadcast: EncodedEvent, value: Any, admission: Admission) -> EncodedEvent:
    """Return the event of a *broadcast* with the source in *value*, what its key holds."""
    if not isinstance(value, bytes):
        return broadcast  # an error: it is not a string
    try:
        kept = admission.receive(value)
    except InvalidEvent:
        return broadcast
    event = broadcast.event
    if not kept.event.source:
        return broadcast
    if is_signed(event):
        same = is_signed(kept.event) and (kept.id, kept.event.digest) == (event.id, event.digest)
        return EncodedEvent.of(kept.event, kept.data, broadcast.fingerprint) if same else broadcast
    event = event.model_copy(update={"source": kept.event.source})
    return EncodedEvent.of(event, event.encode(), broadcast.fingerprint)

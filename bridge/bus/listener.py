"""Reads the event channels, and notices when broadcasts may have been missed.

A pub/sub connection can die without an error, and redis-py subscribes again silently. So the listener publishes a
heartbeat on a channel of the bridge and expects to receive it, and it reports every confirmation of the subscription:
each one after the first is a gap.
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
from bridge.events import EncodedEvent, Event, is_signed
from bridge.redis import BackOff
from bridge.storage import Storage
from bridge.telemetry import Action, Counters, Liveness, log_fields

log = logging.getLogger(__name__)

#: Longest wait for the first message of a batch, and so for a stop to be noticed.
_IDLE_WAIT_S = 0.2
_MISSED_HEARTBEATS = 3
#: How much longer the copy of an event in its key may be than twice its broadcast: the real source may be long.
MORE_BYTES = 4096


@dataclass(frozen=True)
class InvalidMessage:
    """Bytes that are not a valid event, with their channel or key and the reason."""

    origin: str
    data: bytes
    error: InvalidEvent


class Broadcast(NamedTuple):
    """A message as it was received, not decoded, with the event type that its channel names."""

    event_type: str
    data: bytes


@dataclass
class ReceivedBatch:
    """The messages that were read at once: the *types* of all, those that were decoded, and those that are invalid.

    *subscribed*: the subscription was confirmed before them, so messages may have been missed until then.
    """

    types: list[str] = field(default_factory=list)
    events: list[EncodedEvent] = field(default_factory=list)
    invalid: list[InvalidMessage] = field(default_factory=list)
    subscribed: bool = False

    @property
    def count(self) -> int:
        """The number of messages."""
        return len(self.types)


class ChannelListener:
    """Reads all messages on the event channels of one bus. Used by one thread.

    Arguments:
        storage: Its client's pool supplies the subscribed connection. Its settings have the batch size and the
            heartbeat interval.
        counters: Raises ``subscription_gaps`` and ``errors``.
        drop_known: Returns those of the messages that are to be decoded. Must not raise.
        liveness: Gets a ``tick`` for every round, and the marks ``received`` and ``gap``.
        types: Globs of the event types to subscribe to.
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
        """Listen until *stop* is set, and reconnect when the connection is lost.

        Arguments:
            on_batch: Gets every batch. Must not raise. The first one is ``subscribed``: from then on no gap is silent.
        """
        what = f"Lost the subscription to the event channels at {self._settings.redacted_url}"
        back_off = BackOff(log, what, self._counters, stop)
        while not stop.is_set():
            self._liveness.tick()
            try:
                for batch in self._listen(stop):
                    on_batch(batch)
                    if batch.count:  # a confirmed subscription is not enough: a server that shuts down confirms it too
                        back_off.reset()
            except (RedisError, OSError) as error:
                back_off.wait(error)

    def _listen(self, stop: threading.Event) -> Iterator[ReceivedBatch]:
        pubsub: Any = self._client.pubsub()
        try:
            pubsub.subscribe(self._keys.heartbeat)
            pubsub.psubscribe(*self._channels)
            received_at = heartbeat_at = time.monotonic()
            while not stop.is_set():
                batch, received, error = self._read(pubsub)
                now = time.monotonic()
                self._liveness.tick()
                if received:
                    received_at = now
                    self._liveness.mark("received")
                if batch.count or batch.subscribed:
                    batch.events = restore_sources(self._storage, batch.events, self._admission)
                    yield batch
                if error is not None:
                    raise error
                interval = self._settings.heartbeat_interval_s
                if now - received_at > _MISSED_HEARTBEATS * interval:
                    text = f"nothing received for {now - received_at:.0f} s, not even the heartbeat of this process"
                    raise RedisConnectionError(text)
                if now - max(received_at, heartbeat_at) > interval:
                    self._client.publish(self._keys.heartbeat, self._settings.client_name)
                    heartbeat_at = now
        finally:
            pubsub.close()

    def _read(self, pubsub: Any) -> tuple[ReceivedBatch, bool, Exception | None]:
        """Return a batch, which may be empty, whether anything was received, such as a heartbeat, and what ended it."""
        batch, received, size, failed = ReceivedBatch(), False, 0, None
        broadcasts: list[Broadcast] = []
        connection, prefix = pubsub.connection, self._keys.prefix
        more = connection.can_read(timeout=_IDLE_WAIT_S)
        try:
            while more and len(broadcasts) < self._settings.batch_size and size <= BATCH_BYTES:
                # Not get_message(): it does much more for each message, and subscribes again silently. The rest of a
                # message may take as long as a reply: if it takes longer, the message is lost with the connection.
                reply = connection.read_response()
                if isinstance(reply, Exception):
                    raise reply  # redis-py 7 returns some errors, such as LOADING
                received = True
                if reply[0] == b"pmessage":
                    name = reply[2].decode(errors="backslashreplace")
                    broadcasts.append(Broadcast(name.removeprefix(prefix), reply[3]))
                    size += len(reply[3])
                elif reply[0] == b"psubscribe" and reply[1].decode() == self._channels[-1]:
                    self._on_subscribed(batch)
                more = connection.can_read(timeout=0)
        except (RedisError, OSError) as error:
            # The messages that were read come first, since they are not sent again. The next read might not raise the
            # error again: it may be the reply to the subscription.
            failed = error
        batch.types = [broadcast.event_type for broadcast in broadcasts]
        for broadcast in self._drop_known(broadcasts):
            self._decode(broadcast, batch)
        return batch, received, failed

    def _decode(self, broadcast: Broadcast, batch: ReceivedBatch) -> None:
        event_type, data = broadcast
        try:
            batch.events.append(self._admission.receive(data, event_type))
        except InvalidEvent as error:
            batch.invalid.append(InvalidMessage(self._keys.channel(event_type), data, error))

    def _on_subscribed(self, batch: ReceivedBatch) -> None:
        batch.subscribed = True
        self._subscriptions += 1
        if self._subscriptions > 1:
            self._counters.add("subscription_gaps")
            self._liveness.mark("gap")
            extra = log_fields(Action.RESUBSCRIBED, count=self._subscriptions - 1)
            text = "Subscribed to %s again; events may have been missed in between"
            log.info(text, ", ".join(self._channels), extra=extra)


def restore_sources(storage: Storage, events: Sequence[EncodedEvent], admission: Admission) -> list[EncodedEvent]:
    """Return *events*, those of the TypeScript bus with the real source from their event keys.

    That bus writes its own name as the source of every broadcast and keeps the real one, if there is one, in the event
    key. It sends key and broadcast on two connections, so the key may not exist yet: then the event has no source. A
    signed event is replaced by the copy in its key, which has its own signature. The copies are about as large as the
    broadcasts: a key that is much larger holds something else, and is not read.
    """
    hidden = [one for one in events if one.hides_source]
    if not hidden:
        return list(events)
    try:
        names = [storage.keys.event(one.id) for one in hidden]
        replies = storage.event_keys.read_prefixes(names, [2 * one.received_bytes + MORE_BYTES for one in hidden])
    except RedisError:
        return list(events)  # better an event without its source than no event
    values = {one.id: value for one, (value, _) in zip(hidden, replies, strict=True)}
    return [_restored(one, values[one.id], admission) if one.hides_source else one for one in events]


def _restored(broadcast: EncodedEvent, value: Any, admission: Admission) -> EncodedEvent:
    """Return the event of *broadcast* with the source that *value*, the content of its key, names."""
    if not isinstance(value, bytes):
        return broadcast  # an error of Redis: the key does not hold a string
    try:
        kept = admission.receive(value)
    except InvalidEvent:
        return broadcast
    event = broadcast.event
    if kept.event.source is None or not _is_copy(kept.event, event):
        return broadcast
    if is_signed(event):
        if not (is_signed(kept.event) and kept.event.digest == event.digest):
            return broadcast
        restored = EncodedEvent.of(kept.event, kept.data, broadcast.fingerprint)
        restored.signer = kept.signer
        return restored
    event = event.model_copy(update={"source": kept.event.source})
    restored = EncodedEvent.of(event, None, broadcast.fingerprint)
    restored.repaired = broadcast.repaired or kept.repaired
    return restored


def _is_copy(one: Event, other: Event) -> bool:
    return (one.id, one.type, one.payload) == (other.id, other.type, other.payload)

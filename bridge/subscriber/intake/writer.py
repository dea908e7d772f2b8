"""The last step of intake: valid events are appended to the journal, and rejected ones become dead letters."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from redis.exceptions import RedisError

from bridge.bus import MORE_BYTES, Admission, InvalidMessage
from bridge.config import BATCH_BYTES
from bridge.errors import InvalidEvent
from bridge.events import ID_PATTERN, EncodedEvent
from bridge.redis import BackOff
from bridge.storage import RATE_WINDOW_S, AppendResult, DeadLetter, Storage
from bridge.subscriber.dead_letter_writer import RATE_LIMIT, DeadLetterWriter
from bridge.telemetry import Counters, Liveness

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Longest name of a channel or key that a dead letter records; the names may have any length.
_ORIGIN_CHARS = 500
#: Id of an event at the beginning of its JSON.
ID_FIRST = re.compile(rb'\{\s*"(?:id|eventId)"\s*:\s*"(%b)"' % ID_PATTERN.encode())
#: Longest id whose key is read when its event was rejected.
_MAX_ID_CHARS = 200
#: Longest name of a source that an error shows.
_SOURCE_CHARS = 100


class JournalWriter:
    """Appends events of other programs to the journal, each once. Safe for the two threads of intake.

    Arguments:
        storage: The journal.
        dead_letters: Writes those of rejected events and messages.
        counters: Raises ``appended`` or ``caught_up``, ``duplicate`` and ``repaired``.
        liveness: Gets a ``tick`` of the calling thread with every attempt.
    """

    def __init__(
        self, storage: Storage, dead_letters: DeadLetterWriter, counters: Counters, liveness: Liveness
    ) -> None:
        self._journal = storage.journal
        self._keys = storage.keys
        self._event_keys = storage.event_keys
        self._admission = Admission(storage.settings)
        self._settings = storage.settings
        self._dead_letters = dead_letters
        self._counters = counters
        self._liveness = liveness

    def write(
        self, events: Sequence[EncodedEvent], invalid: Sequence[InvalidMessage], *, live: bool, refill: bool = False
    ) -> Counter[AppendResult]:
        """Append *events*, write dead letters for *invalid*, and return how many events had which result.

        Arguments:
            live: They are from the channels, so the rate limit of their source applies. Otherwise they are from event
                keys, which every scan reads again: their dead letters are remembered, so that each is written once.
            refill: See :meth:`Journal.append`.

        Raises:
            RedisError: Redis failed; calling again is safe.
        """
        max_hops = self._settings.max_hops  # the bridge publishes no more; dispatch ends the chains that it publishes
        looping = [one for one in events if one.event.hops > max_hops]
        accepted = [one for one in events if one.event.hops <= max_hops]
        results: list[AppendResult] = []
        for batch in split_by_bytes(accepted, lambda one: len(one.data), BATCH_BYTES):
            results += self._journal.append(batch, refill=refill, limit=live)
        dead_letters: list[DeadLetter] = []
        for one in looping:
            text = f"{one.event.hops} hops, the limit is {max_hops}"
            dead_letters.append(self._dead_letter("hop_limit", text, one))
        for one, result in zip(accepted, results, strict=True):
            if result == "conflict":
                text = f"id {one.id} is taken by an event with another type or payload"
                dead_letters.append(self._dead_letter("id_conflict", text, one))
            elif result == "limited":
                dead_letters.append(self._rate_limited(one))
        for message in invalid:
            error, origin = message.error, message.origin[:_ORIGIN_CHARS]
            dead_letters.append(DeadLetter.of_message(error.reason, str(error), origin, message.data))
        self._dead_letters.write_rejected(dead_letters, remember=not live)
        for name, counted in (("appended" if live else "caught_up", "appended"), ("duplicate", "repeated")):
            rows = zip(accepted, results, strict=True)
            self._counters.add_each(name, [one.type for one, result in rows if result == counted])
        rows = zip(accepted, results, strict=True)
        self._counters.add_each("repaired", [one.type for one, result in rows if one.repaired and result == "appended"])
        if live and invalid:
            self._skip_copies(invalid)
        return Counter(results)

    def _skip_copies(self, rejected: Sequence[InvalidMessage]) -> None:
        """Let no scan report the key of a message that was rejected on its channel, if the key has the same problem.

        One dead letter is enough for an event that is in its key and was broadcast. If its publisher writes the key
        later than this, there are two. A small message must not make this read a large key.
        """
        messages = {self._keys.event(self._id_of(one.data)).encode(): one for one in rejected}
        keys = self._event_keys.sizes_to_read(list(messages))
        keys = [(name, size) for name, size in keys if 0 < size <= 2 * len(messages[name].data) + MORE_BYTES]
        values = self._event_keys.read_prefixes([name for name, _ in keys])
        skipped = []
        for (name, size), (value, ttl_ms) in zip(keys, values, strict=True):
            if isinstance(value, bytes) and isinstance(ttl_ms, int):
                try:
                    self._admission.receive(value)
                except InvalidEvent as error:
                    if error.reason == messages[name].error.reason:
                        skipped.append((name, size, ttl_ms))
        self._event_keys.skip(skipped)

    def _id_of(self, data: bytes) -> str:
        """Return the id under which the publisher of a rejected message may have stored its event.

        JavaScript makes ``undefined`` of an id that is missing, and ``null`` of null.
        """
        if found := ID_FIRST.match(data):
            return found[1].decode()
        try:
            fields = json.loads(data) if len(data) <= self._settings.max_event_bytes else None
        except (ValueError, RecursionError):
            fields = None
        event_id = fields.get("id", "undefined") if isinstance(fields, dict) else "undefined"
        usable = isinstance(event_id, str) and len(event_id) <= _MAX_ID_CHARS and event_id.isprintable()
        return str(event_id) if usable else "null"

    def retry(self, do: Callable[[], T], stop: threading.Event) -> T | None:
        """Repeat *do* until it succeeds, since a message on a channel is not sent again; None if stopped before."""
        what = f"Cannot write to the journal at {self._settings.redacted_url}"
        back_off = BackOff(log, what, self._counters, stop)
        while True:
            self._liveness.tick()
            try:
                done = do()
            except (RedisError, OSError) as error:
                back_off.wait(error)
            else:
                back_off.reset()
                return done
            if stop.is_set():
                return None

    def _dead_letter(self, reason: str, detail: str, event: EncodedEvent) -> DeadLetter:
        return DeadLetter.of_message(reason, detail, self._keys.channel(event.type), event.data)

    def _rate_limited(self, received: EncodedEvent) -> DeadLetter:
        """Return the dead letter of an event whose source exceeds its rate limit: the whole event, to be retried."""
        event, data = received.event, received.data
        source = f"from {event.source[:_SOURCE_CHARS]!r}" if event.source else "without a source"
        source = f"signed with key {received.signer!r}" if received.signer else source
        limit = f"{self._settings.max_events_per_s_per_source:g} a second over {RATE_WINDOW_S} s"
        detail = f"more events {source} than bridge_max_events_per_s_per_source allows, {limit}"
        origin, sha256 = self._keys.channel(event.type), hashlib.sha256(data).hexdigest()
        return DeadLetter(RATE_LIMIT, detail, origin, data, len(data), event.id, event.type, sha256=sha256)


def split_by_bytes(items: Sequence[T], bytes_of: Callable[[T], int], max_bytes: int) -> Iterator[list[T]]:
    """Split *items* into batches of at most *max_bytes*, or of one item."""
    batch: list[T] = []
    size = 0
    for item in items:
        more = bytes_of(item)
        if batch and size + more > max_bytes:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch

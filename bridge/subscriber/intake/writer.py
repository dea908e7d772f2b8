"""The last step of intake: valid events are appended to the journal, and rejected ones become dead letters."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from redis.exceptions import RedisError

from bridge.bus import InvalidMessage
from bridge.config import BATCH_BYTES
from bridge.events import EncodedEvent
from bridge.redis import BackOff
from bridge.storage import RATE_WINDOW_S, AppendResult, DeadLetter, Storage
from bridge.subscriber.dead_letter_writer import RATE_LIMIT, DeadLetterWriter
from bridge.telemetry import Counters, Liveness

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Longest name of a channel or key that a dead letter records; the names may have any length.
_ORIGIN_CHARS = 500
#: Longest name of a source that an error shows.
_SOURCE_CHARS = 100


class JournalWriter:
    """Appends events of other programs to the journal, each once. Safe for the two threads of intake.

    Arguments:
        storage: The journal.
        dead_letters: Writes those of rejected events and messages.
        counters: Raises ``appended`` or ``caught_up``, and ``duplicate``.
        liveness: Gets a ``tick`` of the calling thread with every attempt.
    """

    def __init__(
        self, storage: Storage, dead_letters: DeadLetterWriter, counters: Counters, liveness: Liveness
    ) -> None:
        self._journal = storage.journal
        self._keys = storage.keys
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
        return Counter(results)

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

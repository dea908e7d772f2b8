"""The last step of intake: valid events are appended to the journal, and rejected ones become dead letters."""

from __future__ import annotations

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
from bridge.storage import AppendResult, DeadLetter, Storage
from bridge.subscriber.intake.rejections import Rejections
from bridge.telemetry import Counters, Liveness

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Longest name of a channel or key that a dead letter records; the names may have any length.
_ORIGIN_CHARS = 500


class JournalWriter:
    """Appends events of other programs to the journal, each once. Safe for the two threads of intake.

    Arguments:
        storage: The journal and the dead letters.
        counters: Raises ``appended`` or ``caught_up``, ``duplicate``, and those of :class:`Rejections`.
        liveness: Gets a ``tick`` of the calling thread with every attempt.
    """

    def __init__(self, storage: Storage, counters: Counters, liveness: Liveness) -> None:
        self._journal = storage.journal
        self._keys = storage.keys
        self._settings = storage.settings
        self._rejections = Rejections(storage, counters)
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
                dead_letters.append(self._rejections.rate_limited(one, self._keys.channel(one.type)))
        for message in invalid:
            error, origin = message.error, message.origin[:_ORIGIN_CHARS]
            dead_letters.append(DeadLetter.of_message(error.reason, str(error), origin, message.data))
        self._rejections.keep(dead_letters, remember=not live)
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

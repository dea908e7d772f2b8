"""What intake refuses: kept and counted, each one, and told now and then: strangers may send thousands a second."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Sequence

from redis.exceptions import ResponseError

from bridge.config import BridgeSettings
from bridge.events import EncodedEvent
from bridge.redis import TRANSIENT
from bridge.storage import RATE_WINDOW_S, DeadLetter, DeadLetters, dead_letter_fields
from bridge.telemetry import Action, Counters, LogThrottle

log = logging.getLogger(__name__)

#: Reason of an event whose source sent too many.
_LIMITED = "rate_limit"
#: Characters of the name of a source that are shown.
_SOURCE_CHARS = 100


class Refusals:
    """Keeps what one subscriber's intake refuses; safe for its threads.

    Arguments:
        dead_letters, counters: Its parts. Raises ``invalid``, ``rate_limited`` and ``errors``.
        settings: Group and ``max_events_per_s_per_source``.
    """

    def __init__(self, dead_letters: DeadLetters, counters: Counters, settings: BridgeSettings) -> None:
        self._dead_letters = dead_letters
        self._counters = counters
        self._settings = settings
        self._pace = LogThrottle()
        self._lock = threading.Lock()
        #: What a line is about to how many were kept since without one.
        self._untold: Counter[str] = Counter()

    def limited(self, record: EncodedEvent, origin: str) -> DeadLetter:
        """Return the dead letter of an event whose source sent too many: the whole event, to be tried again."""
        event, data = record.event, record.data
        source = f"from {event.source[:_SOURCE_CHARS]!r}" if event.source else "without a source"
        limit = f"{self._settings.max_events_per_s_per_source:g} a second over {RATE_WINDOW_S} s"
        detail = f"more events {source} than bridge_max_events_per_s_per_source allows, {limit}"
        sha256 = hashlib.sha256(data).hexdigest()
        return DeadLetter(_LIMITED, detail, origin, data, len(data), event.id, event.type, sha256=sha256)

    def keep(self, letters: Sequence[DeadLetter], *, remember: bool) -> None:
        """Write *letters*, each once however many subscribers meet it.

        Arguments:
            remember: See :meth:`DeadLetters.add_many`.

        Raises:
            RedisError: Redis is away or has no memory; call again.
        """
        if not letters:
            return
        try:
            written = self._dead_letters.add_many(letters, remember=remember)
        except TRANSIENT:
            raise
        except ResponseError as error:
            # No right to write them, or something else at their key. The events that come after must not wait for that.
            self._counters.add("errors")
            for letter in letters:
                if self._pace.allow(f"lost {letter.reason}"):
                    extra = dead_letter_fields(Action.DEAD_LETTER_LOST, letter, self._settings.group)
                    text = "dead letter (%s) from %r could not be kept: %s"
                    log.error(text, letter.reason, letter.origin, error, extra=extra)
            return
        for letter, is_new in zip(letters, written, strict=True):
            if is_new:
                self._counters.add(
                    *("rate_limited", 1, letter.event_type) if letter.reason == _LIMITED else ("invalid",)
                )
                self._tell(letter)

    def _tell(self, letter: DeadLetter) -> None:
        """Write a line unless there was one of the kind a moment ago; those that had none are told by the next."""
        is_limited = letter.reason == _LIMITED
        kind = letter.detail if is_limited else letter.reason
        with self._lock:
            if not self._pace.allow(kind):
                self._untold[kind] += 1
                return
            untold = self._untold.pop(kind, 0)
        more = f" ({untold} more like it before)" if untold else ""
        if is_limited:
            extra = dead_letter_fields(Action.SOURCE_RATE_LIMITED, letter, self._settings.group)
        else:
            extra = dead_letter_fields(Action.DEAD_LETTER, letter, self._settings.group)
        log.warning("dead letter (%s) from %r: %s%s", letter.reason, letter.origin, letter.detail, more, extra=extra)

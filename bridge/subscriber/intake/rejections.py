"""What intake refuses: kept and counted, each one, and told now and then: strangers may send thousands a second."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Sequence

from redis.exceptions import ResponseError

from bridge.events import EncodedEvent
from bridge.redis import TRANSIENT
from bridge.storage import RATE_WINDOW_S, DeadLetter, Storage, dead_letter_fields
from bridge.telemetry import Action, Counters, LogThrottle

log = logging.getLogger(__name__)

#: Reason of an event whose source sent too many.
_RATE_LIMIT = "rate_limit"
#: Characters of the name of a source that are shown.
_SOURCE_CHARS = 100


class Rejections:
    """Keeps what the intake of one subscriber rejects. Safe for its threads.

    Arguments:
        storage: The dead letters.
        counters: Raises ``invalid``, ``rate_limited`` and ``errors``.
    """

    def __init__(self, storage: Storage, counters: Counters) -> None:
        self._dead_letters = storage.dead_letters
        self._counters = counters
        self._settings = storage.settings
        self._throttle = LogThrottle()
        self._lock = threading.Lock()
        #: Subject of a log line to how many dead letters were written since without a line.
        self._unlogged: Counter[str] = Counter()

    def rate_limited(self, received: EncodedEvent, origin: str) -> DeadLetter:
        """Return the dead letter of an event whose source exceeds its rate limit: the whole event, to be retried."""
        event, data = received.event, received.data
        source = f"from {event.source[:_SOURCE_CHARS]!r}" if event.source else "without a source"
        limit = f"{self._settings.max_events_per_s_per_source:g} a second over {RATE_WINDOW_S} s"
        detail = f"more events {source} than bridge_max_events_per_s_per_source allows, {limit}"
        sha256 = hashlib.sha256(data).hexdigest()
        return DeadLetter(_RATE_LIMIT, detail, origin, data, len(data), event.id, event.type, sha256=sha256)

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
                if self._throttle.allow(f"lost {letter.reason}"):
                    extra = dead_letter_fields(Action.DEAD_LETTER_LOST, letter, self._settings.group)
                    text = "dead letter (%s) from %r could not be kept: %s"
                    log.error(text, letter.reason, letter.origin, error, extra=extra)
            return
        for letter, is_new in zip(letters, written, strict=True):
            if is_new:
                if letter.reason == _RATE_LIMIT:
                    self._counters.add("rate_limited", event_type=letter.event_type)
                else:
                    self._counters.add("invalid")
                self._log(letter)

    def _log(self, letter: DeadLetter) -> None:
        """Write a line unless there was one of the kind a moment ago; those that had none are told by the next."""
        is_limited = letter.reason == _RATE_LIMIT
        kind = letter.detail if is_limited else letter.reason
        with self._lock:
            if not self._throttle.allow(kind):
                self._unlogged[kind] += 1
                return
            untold = self._unlogged.pop(kind, 0)
        more = f" ({untold} more like it before)" if untold else ""
        if is_limited:
            extra = dead_letter_fields(Action.SOURCE_RATE_LIMITED, letter, self._settings.group)
        else:
            extra = dead_letter_fields(Action.DEAD_LETTER, letter, self._settings.group)
        log.warning("dead letter (%s) from %r: %s%s", letter.reason, letter.origin, letter.detail, more, extra=extra)

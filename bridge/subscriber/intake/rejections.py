"""Rejected messages and events. Each is kept and counted, but logging is throttled: there may be thousands a second."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Sequence

from redis.exceptions import ResponseError

from bridge.events import EncodedEvent
from bridge.redis import heals_by_waiting
from bridge.storage import RATE_WINDOW_S, DeadLetter, Storage, dead_letter_fields
from bridge.telemetry import Action, Counters, LogThrottle

log = logging.getLogger(__name__)

#: Reason of the dead letter of an event whose source exceeds its rate limit.
_RATE_LIMIT = "rate_limit"
#: Longest name of a source that an error shows.
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
        source = f"signed with key {received.signer!r}" if received.signer else source
        limit = f"{self._settings.max_events_per_s_per_source:g} a second over {RATE_WINDOW_S} s"
        detail = f"more events {source} than bridge_max_events_per_s_per_source allows, {limit}"
        sha256 = hashlib.sha256(data).hexdigest()
        return DeadLetter(_RATE_LIMIT, detail, origin, data, len(data), event.id, event.type, sha256=sha256)

    def keep(self, dead_letters: Sequence[DeadLetter], *, remember: bool) -> None:
        """Write *dead_letters*; each is written once, even if several subscribers have it.

        Arguments:
            remember: See :meth:`DeadLetters.add_many`.

        Raises:
            RedisError: Redis is unavailable or out of memory; call again.
        """
        if not dead_letters:
            return
        try:
            written = self._dead_letters.add_many(dead_letters, remember=remember)
        except ResponseError as error:
            if heals_by_waiting(error):
                raise
            # No permission to write them, or another type at their key. Later events must not wait until that is fixed.
            self._counters.add("errors")
            for dead_letter in dead_letters:
                if self._throttle.allow(f"lost {dead_letter.reason}"):
                    extra = dead_letter_fields(Action.DEAD_LETTER_LOST, dead_letter, self._settings.group)
                    text = "Lost a dead letter (%s) of a message from %r; it could not be written: %s"
                    log.error(text, dead_letter.reason, dead_letter.origin, error, extra=extra)
            return
        for dead_letter, is_new in zip(dead_letters, written, strict=True):
            if is_new:
                if dead_letter.reason == _RATE_LIMIT:
                    self._counters.add("rate_limited", event_type=dead_letter.event_type)
                else:
                    self._counters.add("invalid")
                self._log(dead_letter)

    def _log(self, dead_letter: DeadLetter) -> None:
        """Log *dead_letter*, unless a line of its kind was logged recently; then the next line counts it."""
        is_limited = dead_letter.reason == _RATE_LIMIT
        kind = dead_letter.detail if is_limited else dead_letter.reason
        with self._lock:
            if not self._throttle.allow(kind):
                self._unlogged[kind] += 1
                return
            unlogged = self._unlogged.pop(kind, 0)
        more = f" ({unlogged} more since the last such line)" if unlogged else ""
        if is_limited:
            extra = dead_letter_fields(Action.SOURCE_RATE_LIMITED, dead_letter, self._settings.group)
        else:
            extra = dead_letter_fields(Action.DEAD_LETTER, dead_letter, self._settings.group)
        text = "Rejected a message from %r, which is a dead letter now (%s): %s%s"
        log.warning(text, dead_letter.origin, dead_letter.reason, dead_letter.detail, more, extra=extra)

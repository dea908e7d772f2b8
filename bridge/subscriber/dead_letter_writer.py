"""The dead letters of one subscriber: what intake, dispatch and redispatch cannot process is written here.

Redis can refuse dead letters while it accepts everything else: the user has no permission for their key, the key holds
another type of value, or memory is short. Then nothing is lost, and nothing else has to wait. What a dead letter stands
for stays where it is until it can be written:

- A journal entry stays pending, and a task stays in the ledger. Their owners try again after ``retry_s``.
- A message that intake rejected is in no other place. It is kept in the memory of this process, which is limited.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

from redis.exceptions import ResponseError

from bridge.config import BATCH_BYTES
from bridge.redis import describe_error, heals_by_waiting, hint_for
from bridge.storage import DeadLetter, Ended, Storage, dead_letter_fields
from bridge.telemetry import Action, Counters, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Reason of the dead letter of an event whose source exceeds its rate limit.
RATE_LIMIT = "rate_limit"
#: What a dead letter that is kept takes besides its message, in bytes.
_OVERHEAD_BYTES = 1000
#: A refusal counts as over when there was no other one for so many intervals between two tries.
_QUIET_TRIES = 3


class DeadLetterWriter:
    """Writes the dead letters of one subscriber; counts and logs each. Safe for its threads.

    Arguments:
        storage: The dead letters; the settings have the ``maintenance_interval_s`` and what is redacted.
        counters: Raises ``invalid`` or ``rate_limited`` for what intake rejects, ``dead_lettered`` for everything else,
            ``dead_letters_lost`` and ``errors``.
        max_kept_bytes: Size of the dead letters that are kept in memory while Redis refuses them.
    """

    def __init__(self, storage: Storage, counters: Counters, max_kept_bytes: int = BATCH_BYTES) -> None:
        settings = storage.settings
        self._dead_letters = storage.dead_letters
        self._redaction = settings.redaction
        self._group = settings.group
        self._counters = counters
        self._max_kept_bytes = max_kept_bytes
        #: Pause before a dead letter that was refused is tried again, in seconds.
        self.retry_s = settings.maintenance_interval_s
        self._throttle = LogThrottle()
        self._lock = threading.Lock()  # of the fields below
        #: Subject of a log line to how many dead letters were written since without a line.
        self._unlogged: Counter[str] = Counter()
        #: Dead letters that Redis refused, oldest first, by their failure and whether it is remembered.
        self._kept: dict[tuple[str, bool], DeadLetter] = {}
        self._kept_bytes = 0
        self._refusal = ""
        self._refused_at = float("-inf")

    @property
    def problem(self) -> str:
        """Why dead letters cannot be written now; empty if they can."""
        is_over = time.monotonic() - self._refused_at > _QUIET_TRIES * self.retry_s
        return "" if is_over else f"Redis refuses dead letters: {self._refusal}"

    def write(self, dead_letter: DeadLetter, ended: Ended | None = None) -> bool:
        """Write a dead letter, and end its task or give it up in the same step if it has one.

        Arguments:
            ended: See :meth:`DeadLetters.end_task_with`.

        Returns:
            False if Redis refuses it: leave the entry or the task where it is, and try again after ``retry_s``.

        Raises:
            RedisError: Redis is unavailable; call again.
        """
        dead_letter = dead_letter.redacted_by(self._redaction)
        try:
            if dead_letter.task_id:
                is_new = self._dead_letters.end_task_with(dead_letter, ended)
            else:
                is_new = self._dead_letters.add(dead_letter)
        except ResponseError as error:
            self._refused(error)
            return False
        if is_new:  # otherwise it was counted and logged when it was written
            self._record(dead_letter, ended)
        return True

    def write_rejected(self, dead_letters: Sequence[DeadLetter], *, remember: bool) -> None:
        """Write the dead letters of messages that intake rejected; each once, even if several subscribers have it.

        Those that Redis refuses are kept, unless that ends by waiting: then the caller waits, as it does to append.

        Arguments:
            remember: See :meth:`DeadLetters.add_many`.

        Raises:
            RedisError: Redis is unavailable, or has no memory, disk or replicas; call again.
        """
        refused = self._write_many([one.redacted_by(self._redaction) for one in dead_letters], remember=remember)
        if healing := next((error for _, error in refused if heals_by_waiting(error)), None):
            raise healing
        if refused:
            self._refused(refused[0][1])
            self._keep([one for one, _ in refused], remember)

    def retry_kept(self) -> None:
        """Try to write what is kept; to be called every ``retry_s``.

        Raises:
            RedisError: Redis is unavailable.
        """
        if self._kept:
            self._write_kept()

    def close(self) -> None:
        """Try to write what is kept for the last time; what Redis still refuses is lost, counted and logged.

        Raises:
            RedisError: Redis is unavailable.
        """
        try:
            self._write_kept()
        finally:
            with self._lock:
                lost, self._kept, self._kept_bytes = list(self._kept.values()), {}, 0
            self._lose(lost)

    def _write_many(
        self, dead_letters: Sequence[DeadLetter], *, remember: bool
    ) -> list[tuple[DeadLetter, ResponseError]]:
        """Write dead letters; return those that Redis refuses, with its errors."""
        if not dead_letters:
            return []
        refused = []
        results = self._dead_letters.add_many(dead_letters, remember=remember)
        for dead_letter, result in zip(dead_letters, results, strict=True):
            if isinstance(result, ResponseError):
                refused.append((dead_letter, result))
            elif result:
                self._record(dead_letter)
        return refused

    def _write_kept(self) -> None:
        with self._lock:
            kept = list(self._kept.items())
        for remember in (False, True):
            rows = [(key, dead_letter) for key, dead_letter in kept if key[1] == remember]
            refused = self._write_many([dead_letter for _, dead_letter in rows], remember=remember)
            if refused:
                self._refused(refused[0][1])
            left = {id(dead_letter) for dead_letter, _ in refused}
            with self._lock:
                for key, dead_letter in rows:
                    if id(dead_letter) not in left and self._kept.pop(key, None) is not None:
                        self._kept_bytes -= _size(dead_letter)

    def _keep(self, dead_letters: Sequence[DeadLetter], remember: bool) -> None:
        lost = []
        with self._lock:
            for dead_letter in dead_letters:
                key = (dead_letter.failure_hash, remember)  # a scan finds the same message again and again
                if key not in self._kept:
                    self._kept[key] = dead_letter
                    self._kept_bytes += _size(dead_letter)
            while self._kept_bytes > self._max_kept_bytes:
                oldest = self._kept.pop(next(iter(self._kept)))
                self._kept_bytes -= _size(oldest)
                lost.append(oldest)
        self._lose(lost)

    # Counting and logging

    def _record(self, dead_letter: DeadLetter, ended: Ended | None = None) -> None:
        """Count and log a dead letter that was written."""
        if dead_letter.task_id:
            self._counters.add("dead_lettered", event_type=dead_letter.event_type)
            text = "Task %s (%s) %s a dead letter (%s), event %s (%s): %s"
            state = "ended in" if ended is not None else "was given up, with"
            names = (dead_letter.task_id, dead_letter.handler, state, dead_letter.reason)
            event = (dead_letter.event_id, dead_letter.event_type)
            extra = dead_letter_fields(Action.DEAD_LETTER, dead_letter, self._group)
            log.warning(text, *names, *event, dead_letter.detail, extra=extra)
            return
        if dead_letter.reason == RATE_LIMIT:
            self._counters.add("rate_limited", event_type=dead_letter.event_type)
        elif dead_letter.origin == "journal":
            self._counters.add("dead_lettered", event_type=dead_letter.event_type)
        else:
            self._counters.add("invalid")
        self._log_message(dead_letter)

    def _log_message(self, dead_letter: DeadLetter) -> None:
        """Log the dead letter of a message, unless a line of its kind was logged recently. The next line counts it.

        Any client can send thousands of them a second.
        """
        is_limited = dead_letter.reason == RATE_LIMIT
        kind = dead_letter.detail if is_limited else dead_letter.reason
        with self._lock:
            if not self._throttle.allow(kind):
                self._unlogged[kind] += 1
                return
            unlogged = self._unlogged.pop(kind, 0)
        more = f" ({unlogged} more since the last such line)" if unlogged else ""
        if is_limited:
            extra = dead_letter_fields(Action.SOURCE_RATE_LIMITED, dead_letter, self._group)
        else:
            extra = dead_letter_fields(Action.DEAD_LETTER, dead_letter, self._group)
        text = "Rejected a message from %r, which is a dead letter now (%s): %s%s"
        log.warning(text, dead_letter.origin, dead_letter.reason, dead_letter.detail, more, extra=extra)

    def _refused(self, error: Exception) -> None:
        self._counters.add("errors")
        self._refused_at = time.monotonic()
        self._refusal = describe_error(error)
        if self._throttle.allow(f"refused {self._refusal}"):
            extra = log_fields(Action.DEAD_LETTER_DELAYED, group=self._group, reason=type(error).__name__)
            text = "Redis refuses a dead letter: %s. What it stands for is kept; the next try is in %.0f s. %s"
            advice = hint_for(error) or "Check the type of the key of the dead letters."
            log.error(text, self._refusal, self.retry_s, advice, extra=extra)

    def _lose(self, dead_letters: Sequence[DeadLetter]) -> None:
        self._counters.add("dead_letters_lost", len(dead_letters))
        for dead_letter in dead_letters:
            if self._throttle.allow(f"lost {dead_letter.reason}"):
                extra = dead_letter_fields(Action.DEAD_LETTER_LOST, dead_letter, self._group)
                text = "Lost a dead letter (%s) of a message from %r, which Redis had refused: %s"
                log.error(text, dead_letter.reason, dead_letter.origin, self._refusal, extra=extra)


def _size(dead_letter: DeadLetter) -> int:
    return len(dead_letter.raw) + len(dead_letter.detail) + len(dead_letter.origin) + _OVERHEAD_BYTES

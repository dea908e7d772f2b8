"""Liveness of the threads of a subscriber: when each last went round its loop, and when other things last happened."""

from __future__ import annotations

import threading
import time


class Liveness:
    """Timestamps of a monotonic clock, by name. Safe for several threads."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._at_s: dict[str, float] = {}

    def tick(self) -> None:
        """Record a round of the loop of the calling thread, under the thread's name."""
        self.mark(threading.current_thread().name)

    def mark(self, what: str) -> None:
        """Record that *what* happens now."""
        self._at_s[what] = time.monotonic()

    def age_s(self, what: str) -> float:
        """Return the seconds since *what* last happened, or since the start if it never did."""
        return time.monotonic() - self._at_s.get(what, self._started_s)

    def has(self, what: str) -> bool:
        """Return whether *what* ever happened."""
        return what in self._at_s

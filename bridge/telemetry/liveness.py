"""Signs of life: when each thread of a subscriber last went round its loop, and when other things last happened."""

from __future__ import annotations

import threading
import time


class Liveness:
    """Moments, by name; safe for several threads."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._at_s: dict[str, float] = {}

    def tick(self) -> None:
        """Note that the loop of this thread goes round; known under the thread's name."""
        self.mark(threading.current_thread().name)

    def mark(self, what: str) -> None:
        """Note that *what* happens now."""
        self._at_s[what] = time.monotonic()

    def age_s(self, what: str) -> float:
        """Return how long ago *what* last happened; since the beginning if it never did."""
        return time.monotonic() - self._at_s.get(what, self._begun_s)

    def has(self, what: str) -> bool:
        """Whether *what* ever happened."""
        return what in self._at_s

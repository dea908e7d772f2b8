"""Counters of one process: what ``celery inspect stats`` and Flower's worker page show.

Names used: ``received`` ``duplicate`` (in the journal already, as what we published ourselves) ``appended``
``caught_up`` ``stale`` ``invalid`` (intake), ``dispatched`` ``unrouted`` ``held_back`` (waited for a full queue)
``dead`` ``lost`` ``journal_lost`` (dispatch), ``claimed`` ``removed`` (dead consumers) ``trimmed`` ``redispatched``
(upkeep), ``gaps`` ``errors`` (connections). Dead letters that tasks write are not among them.
"""

from __future__ import annotations

import threading
from collections import Counter


class Counters:
    """Named counters that several threads may raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Raise the counter *name* by *amount*."""
        if amount:
            with self._lock:
                self._values[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return a copy of all counters that were ever raised."""
        with self._lock:
            return dict(self._values)

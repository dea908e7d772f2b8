"""Counters of one process: what ``celery inspect stats``, Flower's worker page and ``/metrics`` show.

Of events, by type: ``received`` ``duplicate`` (in the journal already, as what we published ourselves) ``appended``
``caught_up`` ``stale`` ``invalid`` ``rate_limited`` (intake), ``dispatched`` ``no_handler`` ``replayed``
``dead_lettered`` ``lost`` (dispatch), ``trimmed`` ``redispatched`` (upkeep). Of other things: ``dispatch_backpressure``
(a batch waited for a full queue) ``journal_lost`` ``entries_claimed`` (of dead consumers) ``consumers_removed`` (dead
ones) ``subscription_gaps`` ``errors`` ``reconnects`` (connections).
Dead letters that tasks write are not among them: those are counted in Redis, see ``write_dead_letter.lua``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

#: Types of events that have counters of their own, beside those that handlers name. Anybody may invent types, and each
#: label of a metric is kept for ever by those who collect them.
_MAX_TYPES = 100
#: No event has a longer type; but a channel, which anybody may broadcast on, may have a name of any length.
_MAX_TYPE_CHARS = 200
#: Stands for all further types. No event can have it: a type begins with none of these characters.
OTHER_TYPES = "(other)"


class Delays:
    """How long things took, counted in classes of which each is twice as wide as the one before.

    Arguments:
        counts: Exponent to how many took up to ``2 ** exponent`` ms, but more than half of that.
        sum_ms: All together.
    """

    def __init__(self, counts: dict[int, int] | None = None, sum_ms: int = 0) -> None:
        self.counts = Counter(counts or {})
        self.sum_ms = sum_ms

    def add(self, ms: int, times: int) -> None:
        """Count that something took *ms* so many *times*."""
        self.counts[max(0, ms - 1).bit_length()] += times
        self.sum_ms += max(0, ms) * times


class Counters:
    """Named counters that several threads may raise.

    Arguments:
        known_types: Event types that always have counters of their own.
    """

    def __init__(self, known_types: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._values: Counter[tuple[str, str]] = Counter()
        self._known = frozenset(known_types)
        self._types: set[str] = set()
        self._delays = Delays()

    def add(self, name: str, amount: int = 1, event_type: str = "") -> None:
        """Raise the counter *name*, of an event type if it is of events, by *amount*."""
        if amount:
            with self._lock:
                self._values[name, self._label(event_type)] += amount

    def add_each(self, name: str, event_types: Iterable[str]) -> None:
        """Raise the counter *name* by one for each event, given by its type."""
        for event_type, amount in Counter(event_types).items():
            self.add(name, amount, event_type)

    def dispatched_after(self, delays_ms: Iterable[tuple[int, int]]) -> None:
        """Note how long after their journal entries task messages were in their queues, as pairs of ms and how many."""
        with self._lock:
            for ms, times in delays_ms:
                self._delays.add(ms, times)

    def snapshot(self) -> dict[str, int]:
        """Return a copy of all counters that were ever raised, of events of all types together."""
        totals: Counter[str] = Counter()
        for (name, _), value in self.by_type().items():
            totals[name] += value
        return dict(totals)

    def by_type(self) -> dict[tuple[str, str], int]:
        """Return a copy of all counters that were ever raised, by name and event type."""
        with self._lock:
            return dict(self._values)

    def dispatch_delays(self) -> Delays:
        """Return a copy of what :meth:`dispatched_after` has counted."""
        with self._lock:
            return Delays(self._delays.counts, self._delays.sum_ms)

    def _label(self, event_type: str) -> str:
        if not event_type or event_type in self._known or event_type in self._types:
            return event_type
        if len(self._types) >= _MAX_TYPES or len(event_type) > _MAX_TYPE_CHARS:
            return OTHER_TYPES
        self._types.add(event_type)
        return event_type

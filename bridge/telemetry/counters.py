"""Counters of one process, as ``celery inspect stats``, Flower's worker page and ``/metrics`` show them.

=============  ====================================================================================================
events (type)  intake: ``received``, ``duplicate`` (in the journal already, as what this bridge publishes itself),
               ``appended``, ``caught_up``, ``repaired``, ``stale``, ``invalid``, ``rate_limited``
               dispatch: ``dispatched``, ``handed_over``, ``no_handler``, ``invalid_trace``, ``replayed``,
               ``dead_lettered``, ``lost``
               maintenance: ``trimmed``, ``redispatched``
others         ``dispatch_backpressure`` (batches that waited for a full queue), ``journal_lost``,
               ``entries_claimed`` and ``consumers_removed`` (of dead consumers), ``subscription_gaps``,
               ``errors`` and ``reconnects`` (of connections)
=============  ====================================================================================================

Dead letters that tasks write are counted in Redis, see ``write_dead_letter.lua``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

#: Event types with separate counters, in addition to those that handlers name. Any publisher may invent types, and a
#: metrics system keeps each label value indefinitely.
_MAX_TYPES = 100
#: No valid event has a longer type, but an untrusted publisher may use channels with names of any length.
_MAX_TYPE_CHARS = 200
#: Label of all further types. No event can have this type: a type cannot contain parentheses.
OTHER_TYPES = "(other)"


class Delays:
    """A histogram of delays. Each bucket is twice as wide as the one before.

    Arguments:
        counts: Exponent to the number of delays of up to ``2 ** exponent`` ms, but more than half of that.
        sum_ms: Sum of all delays.
    """

    def __init__(self, counts: dict[int, int] | None = None, sum_ms: int = 0) -> None:
        self.counts = Counter(counts or {})
        self.sum_ms = sum_ms

    def add(self, ms: int, times: int) -> None:
        """Count a delay of *ms* as many *times*."""
        self.counts[max(0, ms - 1).bit_length()] += times
        self.sum_ms += max(0, ms) * times


class TypeLabels:
    """Event types as the labels of a metrics or tracing system, which must not become endlessly many.

    Arguments:
        known: Types that always have a separate label.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = frozenset(known)
        self._types: set[str] = set()

    def label(self, event_type: str) -> str:
        """Return the type itself, or :data:`OTHER_TYPES` if too many others have had a separate label."""
        if not event_type or event_type in self._known or event_type in self._types:
            return event_type
        if len(self._types) >= _MAX_TYPES or len(event_type) > _MAX_TYPE_CHARS:
            return OTHER_TYPES
        self._types.add(event_type)
        return event_type


class Counters:
    """Named counters. Safe for several threads.

    Arguments:
        known_types: Event types that always have separate counters.
    """

    def __init__(self, known_types: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._values: Counter[tuple[str, str]] = Counter()
        self._labels = TypeLabels(known_types)
        self._delays = Delays()

    def add(self, name: str, amount: int = 1, event_type: str = "") -> None:
        """Increase the counter *name* by *amount*; a counter of events has an *event_type*."""
        if amount:
            with self._lock:
                self._values[name, self._labels.label(event_type)] += amount

    def add_each(self, name: str, event_types: Iterable[str]) -> None:
        """Increase the counter *name* by one for each event, given by its type."""
        for event_type, amount in Counter(event_types).items():
            self.add(name, amount, event_type)

    def dispatched_after(self, delays_ms: Iterable[tuple[int, int]]) -> None:
        """Record the delays from journal entries to queued task messages, as pairs of ms and number of messages."""
        with self._lock:
            for ms, times in delays_ms:
                self._delays.add(ms, times)

    def snapshot(self) -> dict[str, int]:
        """Return a copy of all counters that are not zero; those of events are summed over all types."""
        totals: Counter[str] = Counter()
        for (name, _), value in self.by_type().items():
            totals[name] += value
        return dict(totals)

    def by_type(self) -> dict[tuple[str, str], int]:
        """Return a copy of all counters that are not zero, by name and event type."""
        with self._lock:
            return dict(self._values)

    def dispatch_delays(self) -> Delays:
        """Return a copy of the delays that :meth:`dispatched_after` recorded."""
        with self._lock:
            return Delays(self._delays.counts, self._delays.sum_ms)

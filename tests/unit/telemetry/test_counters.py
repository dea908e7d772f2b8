"""Counters are safe for several threads."""

from __future__ import annotations

from bridge.telemetry.counters import OTHER_TYPES, Counters


def test_counters_of_several_threads() -> None:
    """Types beyond the limit share one label in all counters; totals include all types."""
    counters = Counters(["known.one", "known.*"])
    for number in range(200):
        counters.add("received", event_type=f"t.n{number}")
    counters.add_each("received", ["known.one", "known.one", "known.two", "t.n5"])
    by_type = counters.by_type()
    assert by_type["received", "known.one"] == 2
    assert by_type["received", "t.n5"] == 2
    assert by_type["received", OTHER_TYPES] == 101
    assert counters.snapshot() == {"received": 204}
    counters.add("errors", 0)
    assert "errors" not in counters.snapshot()

"""The moments that timestamps of other programs mean."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bridge import Event


@pytest.mark.parametrize(
    "timestamp",
    [
        1_767_326_645_000,
        1_767_326_645,
        1_767_326_645.0,
        "2026-01-02T04:04:05.000Z",
        "2026-01-02 04:04:05",
        "2026-01-02T06:04:05+02:00",
    ],
)
def test_the_time_of_an_event_is_read_in_each_usual_form(timestamp: float | str) -> None:
    """Milliseconds, seconds and ISO 8601 mean the same moment; without an offset the time is in UTC."""
    event = Event(type="a", timestamp=timestamp)
    assert event.timestamp == timestamp
    assert event.occurred_at == datetime(2026, 1, 2, 4, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("timestamp", ["1711121210000", "20260102T040405", "9999-12-31T23:59:59-23:59", 10**18, "T"])
def test_what_is_no_time_is_not_taken_for_one(timestamp: float | str) -> None:
    """Text without the form of a date, microseconds, and moments out of range have no time."""
    assert Event(type="a", timestamp=timestamp).occurred_at is None

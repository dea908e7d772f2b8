"""Time in the wire format: ms since the epoch, and what other programs write in its place."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

#: Smaller numbers are seconds: as ms they would be before March 1973.
_SMALLEST_MS = 100_000_000_000
#: How ISO 8601 begins, as JavaScript's ``toISOString()`` and most others write it.
_ISO_8601 = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ].{1,40})?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms() -> int:
    """Return the current time, ms since the epoch."""
    return time.time_ns() // 1_000_000


def moment_of(timestamp: Any) -> datetime | None:
    """Return the moment that a timestamp means: ms or seconds since the epoch, or ISO 8601, in UTC unless it says so.

    Returns:
        None when it has another form.
    """
    try:
        if isinstance(timestamp, str) and _ISO_8601.fullmatch(timestamp):
            moment = datetime.fromisoformat(timestamp.upper())
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        if type(timestamp) in (int, float):
            seconds = timestamp if abs(timestamp) < _SMALLEST_MS else timestamp / 1000
            return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        pass  # not a time
    return None


def ms_of(timestamp: Any) -> int | None:
    """Return the moment that a timestamp means in ms since the epoch; None as :func:`moment_of`."""
    moment = moment_of(timestamp)
    return None if moment is None else (moment - _EPOCH) // timedelta(milliseconds=1)

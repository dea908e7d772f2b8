"""The clock of this host, in the unit of the wire format."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return the current time, ms since the epoch."""
    return time.time_ns() // 1_000_000

"""The clock of the Redis server: what is compared across hosts is measured by this one clock."""

from __future__ import annotations

from typing import SupportsInt


def server_ms(reply: tuple[SupportsInt | bytes, SupportsInt | bytes]) -> int:
    """Return the time in the reply to TIME, seconds and microseconds, as ms since the epoch."""
    seconds, microseconds = reply
    return int(seconds) * 1000 + int(microseconds) // 1000

"""Waiting for conditions, and counting commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis


def calls(client: Redis) -> dict[str, int]:
    """Return how often each command has been called on a server, by any client."""
    stats: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}


def eventually(check: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Wait until *check* returns a true value, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (result := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)
    return result

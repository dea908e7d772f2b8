"""Real processes on the shared Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support.processes import Processes


@pytest.fixture
def processes(tmp_path: Path, server: RedisServer, prefix: str) -> Iterator[Processes]:
    """Start real processes on the shared server with the prefix, and the broker queues, of this test."""
    environment = {
        "REDIS_URL": server.url,
        "BRIDGE_CHANNEL_PREFIX": prefix,
        "C_FORCE_ROOT": "1",
        "PYTHONWARNINGS": "ignore::celery.platforms.SecurityWarning",
    }
    children = Processes(tmp_path, environment)
    yield children
    children.end()

"""Fixtures and marks for tests with real processes on the shared Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support.processes import Processes, environment_on


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the tests of this folder time for their servers."""
    item.add_marker(pytest.mark.timeout(200))


@pytest.fixture
def processes(tmp_path: Path, server: RedisServer, prefix: str) -> Iterator[Processes]:
    """Start real processes on the shared server, with the prefix and the broker queues of this test."""
    with Processes(tmp_path, environment_on(server, prefix)) as children:
        yield children

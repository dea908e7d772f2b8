"""Fixtures and marks for tests with real processes on the shared Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support.processes import Processes, environment_on

#: Files whose tests share no server.
APART = {"test_compose_variants", "test_failover"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the tests of this folder time for their servers, and group those that share servers in one process."""
    item.add_marker(pytest.mark.timeout(200))
    folder, file = item.path.parent.name, item.path.stem
    if folder == "matrix" and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        item.add_marker(pytest.mark.xdist_group(f"site {item.callspec.params.get('site', file)}"))
    elif folder == "rabbitmq":  # two nodes: one that tests damage, and one that they do not
        item.add_marker(pytest.mark.xdist_group(f"rabbitmq {file in ('test_faults', 'test_workers')}"))
    elif folder == "browser":
        item.add_marker(pytest.mark.xdist_group(folder))
    elif folder in ("deploy", "topologies") and file not in APART:
        item.add_marker(pytest.mark.xdist_group(file))


@pytest.fixture
def processes(tmp_path: Path, server: RedisServer, prefix: str) -> Iterator[Processes]:
    """Start real processes on the shared server, with the prefix and the broker queues of this test."""
    with Processes(tmp_path, environment_on(server, prefix)) as children:
        yield children

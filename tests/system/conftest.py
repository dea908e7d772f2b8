"""Fixtures and marks for tests with real processes on the shared Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support import wheel
from tests.support.processes import Processes, environment_on


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the tests of this folder time for their servers."""
    item.add_marker(pytest.mark.timeout(200))


@pytest.fixture
def processes(tmp_path: Path, server: RedisServer, prefix: str) -> Iterator[Processes]:
    """Start real processes on the shared server, with the prefix and the broker queues of this test."""
    with Processes(tmp_path, environment_on(server, prefix)) as children:
        yield children


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once for all processes of this test run; the sdist is in the same folder."""
    directory = tmp_path_factory.getbasetemp()
    return wheel.build((directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory) / "wheel")


@pytest.fixture(scope="session")
def installed(built_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> wheel.Environment:
    """An environment with ``celery-event-bridge[flower,server]`` and nothing else."""
    return wheel.install(built_wheel, tmp_path_factory.mktemp("installed"), ["flower", "server"])


@pytest.fixture(scope="session")
def installed_without_extras(built_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> wheel.Environment:
    """An environment with ``celery-event-bridge`` and nothing else."""
    return wheel.install(built_wheel, tmp_path_factory.mktemp("without-extras"))

"""Fixtures for real processes on the shared Redis."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from bridge import BridgeSettings
from bridge.testing.redis_server import RedisServer
from tests.support import ROOT
from tests.support.processes import Processes, environment_on
from tests.support.site import Site
from tests.support.terminal import OpenTerminal, Terminal


@pytest.fixture
def site(processes: Processes, settings: BridgeSettings, client: Redis) -> Site:
    return Site(processes, settings, client)


@pytest.fixture
def terminal(processes: Processes) -> Iterator[OpenTerminal]:
    """Run ``celery -A tests.app ...`` in a terminal."""
    opened: list[Terminal] = []

    def run(*arguments: str, app: str = "tests.app", columns: int = 100, **environment: str) -> Terminal:
        environment = processes.environment | {"PYTHONWARNINGS": ""} | environment
        opened.append(Terminal(["-A", app, *arguments], environment, columns))
        return opened[-1]

    yield run
    for one in opened:
        one.end()


@pytest.fixture
def shell(processes: Processes) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a shell command in which ``bus`` means ``celery -A tests.app bus``."""

    def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        bus = f'bus() {{ "{sys.executable}" -m celery -A tests.app bus "$@"; }}'
        return subprocess.run(
            ["bash", "-c", f"{bus}; {command}"],
            cwd=ROOT,
            env=os.environ | processes.environment | {"PYTHONWARNINGS": ""} | environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


@pytest.fixture
def processes(tmp_path: Path, server: RedisServer, prefix: str) -> Iterator[Processes]:
    """Start real processes on the shared server, with the prefix and the broker queues of this test."""
    with Processes(tmp_path, environment_on(server, prefix)) as children:
        yield children

"""The commands in this process, with what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.cli import bus as bus_command
from tests.conftest import Processes
from tests.replays import Bench
from tests.test_execution import Site

Say = Callable[..., Result]


@pytest.fixture
def site(processes: Processes, settings: BridgeSettings, client: Redis) -> Site:
    return Site(processes, settings, client)


@pytest.fixture
def bench(client: Redis, settings: BridgeSettings) -> Bench:
    return Bench(client, settings)


@pytest.fixture
def bus(settings: BridgeSettings) -> Iterator[EventBus]:
    with EventBus(settings) as connected:
        yield connected


@pytest.fixture
def say(app: Celery, settings: BridgeSettings, use, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Run ``bus ...`` in this process, on the handlers t.exact and t.plain."""
    use("t.exact", "t.plain")
    monkeypatch.setenv("REDIS_URL", settings.url)
    monkeypatch.setenv("BRIDGE_CHANNEL_PREFIX", settings.channel_prefix)

    def run(*arguments: str, expect: int = 0, **options: Any) -> Result:
        result = CliRunner().invoke(bus_command, arguments, obj=SimpleNamespace(app=app), **options)
        assert result.exit_code == expect, result.output
        assert "Traceback" not in result.output
        return result

    return run

"""Commands of ``bus`` in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from bridge import BridgeSettings
from bridge.cli import bus as bus_command
from tests.support.apps import Invoke


def on_bus(settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment so that commands use the bus of *settings*."""
    monkeypatch.setenv("REDIS_URL", settings.url)
    monkeypatch.setenv("BRIDGE_CHANNEL_PREFIX", settings.channel_prefix)


def invoker(app: Celery, *command: str) -> Invoke:
    """Return a function that runs ``bus COMMAND ...`` and asserts its exit status; ``expect=None`` accepts any."""

    def run(*arguments: str, expect: int | None = 0, **options: Any) -> Result:
        result = CliRunner().invoke(bus_command, [*command, *arguments], obj=SimpleNamespace(app=app), **options)
        assert expect is None or result.exit_code == expect, result.output
        assert "Traceback" not in result.output
        return result

    return run

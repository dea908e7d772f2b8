"""The commands in this process, with what they say, and in real ones: at a terminal, and in pipes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from redis import Redis

from bridge import BridgeSettings
from bridge.cli import bus as bus_command
from tests.conftest import ROOT, Processes, eventually
from tests.test_execution import Site
from tests.watching.conftest import user_app  # noqa: F401  # a fixture

Say = Callable[..., Result]


@pytest.fixture
def site(processes: Processes, settings: BridgeSettings, client: Redis) -> Site:
    return Site(processes, settings, client)


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


class Terminal:
    """A command at a terminal of its own, and what is written there."""

    def __init__(self, command: list[str], environment: dict[str, str], columns: int) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, columns))
        without = {"NO_COLOR", "COLUMNS", "FORCE_COLOR", "REDIS_URL"}
        inherited = {name: value for name, value in os.environ.items() if name not in without}
        environment = inherited | {"TERM": "xterm-256color"} | environment
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # nobody is left at the other end
            while data := os.read(self._master, 65536):
                self._written += data

    @property
    def text(self) -> str:
        """All that was written so far, with colours and the like."""
        return self._written.decode(errors="replace")

    def shows(self, text: str) -> None:
        """Wait until *text* was written."""
        eventually(lambda: text in self.text, f"{text!r} at the terminal; there is {self.text!r}")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self, timeout_s: float = 20) -> int:
        """Wait for the command to end; return its status."""
        status = self.process.wait(timeout_s)
        self._reader.join(5)
        return status

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        os.close(self._master)


OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def terminal(processes: Processes) -> Iterator[OpenTerminal]:
    """Run ``celery -A tests.app ...`` at a terminal."""
    opened: list[Terminal] = []

    def run(*arguments: str, app: str = "tests.app", columns: int = 100, **environment: str) -> Terminal:
        command = [sys.executable, "-m", "celery", "-A", app, *arguments]
        opened.append(Terminal(command, processes.environment | {"PYTHONWARNINGS": ""} | environment, columns))
        return opened[-1]

    yield run
    for one in opened:
        one.end()


@pytest.fixture
def shell(processes: Processes) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a shell command, in which ``bus`` stands for ``celery -A tests.app bus``."""

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

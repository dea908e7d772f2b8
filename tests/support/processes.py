"""Child processes of tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support import ROOT
from tests.support.fork_server import Forked, fork_server

#: Number of characters of each process log that are shown when a test fails.
LOG_SHOWN = 8_000
#: The maximum time in which a worker stops. The prefork pool of Celery 5.7 sometimes takes 30 s, or twice that, with or
#: without the bridge.
STOP_S = 100
#: Mark for tests that wait for a worker to stop.
stops_worker = pytest.mark.timeout(2 * STOP_S)

# A shell ignores SIGINT and SIGQUIT in background jobs, and the processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def environment_on(server: RedisServer, prefix: str) -> dict[str, str]:
    """Return the environment of programs with bus, broker and results on one server, and their own prefix."""
    return {
        "REDIS_URL": server.url,
        "BRIDGE_CHANNEL_PREFIX": prefix,
        "BRIDGE_BLOCK_MS": "100",  # a subscriber that stops waits for its read to end, by default for up to 1 s
        "C_FORCE_ROOT": "1",
        "PYTHONWARNINGS": "ignore::celery.platforms.SecurityWarning",
    }


class Processes:
    """Child processes of one test, with their output in files. All of them are killed when the test ends."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment
        self._running: list[subprocess.Popen[bytes] | Forked] = []

    def start(
        self, *command: str, name: str = "process", cwd: Path = ROOT, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a command, by default in the project's folder."""
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment | environment,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def celery(self, *arguments: str, name: str = "celery", app: str = "tests.app", **environment: str) -> Any:
        """Start ``celery -A app ...`` as a fork that has already done its imports."""
        environment = os.environ | self.environment | environment
        with (self.directory / f"{name}.log").open("ab") as output, Path(os.devnull).open() as nothing:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            process = fork_server().start("celery", ["-A", app, *arguments], environment, streams)
        self._running.append(process)
        return process

    def worker(self, name: str = "w1", *arguments: str, **environment: str) -> Any:
        """Start a worker with a subscriber and the handlers of ``tests/app.py``."""
        command = ("worker", "--without-mingle", "-n", f"{name}@test", "-l", "INFO", "-c", "2")
        return self.celery(*command, *arguments, name=name, **environment)

    def output(self, *arguments: str, timeout_s: float = 30) -> str:
        """Run ``celery -A tests.app ...``; return its output."""
        name = f"output{len(self._running)}"
        self.celery(*arguments, name=name).wait(timeout_s)
        return self.log(name)

    def with_bus_apart(self, bus: RedisServer) -> dict[str, str]:
        """Return the environment of processes with another bus; the server of these processes is their broker."""
        return {"BRIDGE_REDIS_URL": bus.url, "CELERY_BROKER_URL": self.environment["REDIS_URL"]}

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill all processes and print their logs."""
        for process in self._running:
            # The whole process group: a worker that is killed with SIGKILL leaves its pool processes running.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for path in sorted(self.directory.glob("*.log")):  # pytest shows this output if the test failed
            sys.stdout.write(f"--- {path.name}\n{self.log(path.stem)[-LOG_SHOWN:]}\n")

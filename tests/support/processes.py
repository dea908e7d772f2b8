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

#: Characters shown of the log of each process of a test that failed.
LOG_SHOWN = 8_000
#: How long a worker may take to stop: the prefork pool of Celery 5.7 takes 30 s now and then, or twice that, with or
#: without the bridge.
STOP_S = 100
#: Mark of the tests that wait for that.
stops_worker = pytest.mark.timeout(2 * STOP_S)

# A shell ignores SIGINT in what it runs in the background, and the processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def environment_on(server: RedisServer, prefix: str) -> dict[str, str]:
    """The environment of programs with bus, broker and results on one server, and a prefix of their own."""
    return {
        "REDIS_URL": server.url,
        "BRIDGE_CHANNEL_PREFIX": prefix,
        "BRIDGE_BLOCK_MS": "100",  # a stop waits for a read to end, which is a second otherwise
        "C_FORCE_ROOT": "1",
        "PYTHONWARNINGS": "ignore::celery.platforms.SecurityWarning",
    }


class Processes:
    """Child processes of one test, with their output in files; all are gone when it ends."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment
        self._running: list[subprocess.Popen[bytes] | Forked] = []

    def start(self, *command: str, name: str = "process", **environment: str) -> subprocess.Popen[bytes]:
        """Start a command in the project's folder."""
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment | environment,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def celery(self, *arguments: str, name: str = "celery", app: str = "tests.app", **environment: str) -> Any:
        """Start ``celery -A app ...``: a fork, which has its imports behind it."""
        environment = os.environ | self.environment | environment
        with (self.directory / f"{name}.log").open("ab") as output, Path(os.devnull).open() as nothing:
            streams = (nothing.fileno(), output.fileno(), output.fileno())
            process = fork_server().start("celery", ["-A", app, *arguments], environment, streams)
        self._running.append(process)
        return process

    def worker(self, name: str = "w1", *arguments: str, **environment: str) -> Any:
        """Start a worker with a subscriber, on the handlers of ``tests/app.py``."""
        command = ("worker", "--without-mingle", "-n", f"{name}@test", "-l", "INFO", "-c", "2")
        return self.celery(*command, *arguments, name=name, **environment)

    def output(self, *arguments: str, timeout_s: float = 30) -> str:
        """Run ``celery -A tests.app ...``; return what it wrote."""
        name = f"output{len(self._running)}"
        self.celery(*arguments, name=name).wait(timeout_s)
        return self.log(name)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill all of them, and show what they wrote."""
        for process in self._running:
            # The whole group: a worker killed with SIGKILL leaves its pool behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for path in sorted(self.directory.glob("*.log")):  # pytest shows what is printed, if the test failed
            sys.stdout.write(f"--- {path.name}\n{self.log(path.stem)[-LOG_SHOWN:]}\n")

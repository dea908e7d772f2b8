"""Child processes of a command. All of them end with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Self

from bridge.cli import output
from bridge.cli.table import Styled

#: How long a child may take to shut down, a worker with its tasks.
_STOP_TIMEOUT_S = 10.0
#: How many lines are kept of a child whose output is not shown.
_KEPT_LINES = 20


class Child:
    """One process in its own session. Ctrl-C reaches the command only, which then stops the process.

    Arguments:
        name: Prefix of each of its lines.
        command: The program and its arguments.
        environment: Added to the environment of this process.
        shown: Whether its lines are shown immediately, or only the last ones after it has ended.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, shown: bool) -> None:
        self.name = name
        self._shown = shown
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process = subprocess.Popen(  # noqa: S603  # its arguments are ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name=name, daemon=True)
        self._reader.start()

    @property
    def status(self) -> int | None:
        """Exit status; None while it is running."""
        return self._process.poll()

    def report_end(self) -> None:
        """Print that it has ended, with its last lines."""
        self._reader.join(1.0)
        for text in () if self._shown else self._kept:
            self._print(text)
        output.note(Styled(f"{self.name} exited with status {self.status}", "red"))

    def terminate(self) -> None:
        """Send it SIGTERM."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, deadline_s: float) -> None:
        """Wait until it has ended, at most until *deadline_s* of the monotonic clock."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline_s - time.monotonic()))

    def kill(self) -> None:
        """Kill it and its own children if they are still running."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self, lines: IO[bytes]) -> None:
        for raw in lines:  # until it ends: a full pipe would block the child
            text = raw.decode(errors="replace").rstrip()
            if self._shown and text:
                self._print(text)
            else:
                self._kept.append(text)

    def _print(self, text: str) -> None:
        output.note(Styled(f"{self.name} | ", "blue"), text)


class Children:
    """The processes of a block; when it ends they are stopped, the newest first."""

    def __init__(self) -> None:
        self.running: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        try:
            for child in reversed(self.running):
                child.terminate()
            for child in self.running:
                child.wait(deadline_s)
        finally:  # also after a second Ctrl-C
            for child in self.running:
                child.kill()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, shown: bool) -> None:
        """Start a child, see :class:`Child`."""
        self.running.append(Child(name, command, environment, shown=shown))

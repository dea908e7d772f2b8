"""Child processes of a command: all of them end with it."""

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

#: How long a child may take to end by itself, a worker with its tasks.
_STOP_TIMEOUT_S = 10.0
#: Lines kept of a child whose output is not shown.
_KEPT_LINES = 20


class Child:
    """One process, in a session of its own: Ctrl-C is for the command, which ends it in good order.

    Arguments:
        name: Stands before each of its lines.
        command: With its arguments.
        environment: Added to that of the command.
        shown: Whether its lines are shown as they come, or only the last ones when it fails.
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
        """Exit status; None while it runs."""
        return self._process.poll()

    def tell_end(self) -> None:
        """Say that it has ended, and what it said last."""
        self._reader.join(1.0)
        for text in () if self._shown else self._kept:
            self._say(text)
        output.note(Styled(f"{self.name} has ended with status {self.status}", "red"))

    def terminate(self) -> None:
        """Ask it to end."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, deadline_s: float) -> None:
        """Wait until it has ended, or until *deadline_s* of the monotonic clock."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline_s - time.monotonic()))

    def kill(self) -> None:
        """End it and its own children at once, if they have not ended."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self, lines: IO[bytes]) -> None:
        for raw in lines:  # to the end: a full pipe would stop the child
            text = raw.decode(errors="replace").rstrip()
            if self._shown and text:
                self._say(text)
            else:
                self._kept.append(text)

    def _say(self, text: str) -> None:
        output.note(Styled(f"{self.name} | ", "blue"), text)


class Children:
    """The processes of a block; at its end they are ended, the newest first."""

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
        finally:  # also when somebody is impatient
            for child in self.running:
                child.kill()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str], *, shown: bool) -> None:
        """Start one, see :class:`Child`."""
        self.running.append(Child(name, command, environment, shown=shown))

"""Commands that run in a terminal."""

from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from tests.support.fork_server import fork_server
from tests.support.waiting import eventually


class Pty:
    """A pseudo-terminal, and what the program at its other end has written.

    Attributes:
        slave: The other end, for a program that is started. Call :meth:`started` then.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (rows, columns))
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def started(self) -> None:
        """Leave the other end to the program, and collect its output."""
        os.close(self.slave)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the other end is closed
            while data := os.read(self._master, 65536):
                self._written += data

    @property
    def text(self) -> str:
        """Return all output so far, including escape sequences."""
        return self._written.decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ended(self) -> None:
        """Collect the rest of the output of a program that has ended."""
        self._reader.join(5)

    def close(self) -> None:
        self.ended()
        os.close(self._master)


class Terminal:
    """``celery ...`` in its own terminal, and its output."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], columns: int) -> None:
        self._pty = Pty(40, columns)
        without = {"NO_COLOR", "COLUMNS", "FORCE_COLOR", "REDIS_URL"}
        inherited = {name: value for name, value in os.environ.items() if name not in without}
        environment = inherited | {"TERM": "xterm-256color"} | environment
        self.process = fork_server().start("celery", arguments, environment, (self._pty.slave,) * 3)
        self._pty.started()

    @property
    def text(self) -> str:
        """Return all output so far, including escape sequences."""
        return self._pty.text

    def shows(self, text: str) -> None:
        """Wait until *text* appears in the output."""
        eventually(lambda: text in self.text, f"{text!r} at the terminal; it contains {self.text!r}")

    def type(self, text: str) -> None:
        self._pty.type(text)

    def wait(self, timeout_s: float = 20) -> int:
        """Wait for the command to exit; return its exit status."""
        status = self.process.wait(timeout_s)
        self._pty.ended()
        return status

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._pty.close()


OpenTerminal = Callable[..., Terminal]

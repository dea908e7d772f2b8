"""A server that forks the Python programs of the tests from a process that has already imported Celery and the bridge.

A new interpreter spends 0.7 s of processor time on these imports, a fork none. A forked program has the same signals,
session, streams, arguments and environment as a new interpreter, and exits like one. Tests that depend on a new
interpreter, for example on its hash seed or on the cost of its imports, start it with ``subprocess``.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from tests.support import ROOT

#: Modules imported before the first fork. None of them reads the environment or creates an application.
PRELOADED = [
    "bridge.worker",
    *(f"bridge.cli.commands.{path.stem}" for path in sorted((ROOT / "bridge/cli/commands").glob("[a-z]*.py"))),
    *("celery.bin.celery", "celery.apps.worker", "celery.backends.redis", "celery.concurrency.prefork"),
    *("celery.worker.consumer", "celery.worker.strategy", "kombu.transport.pyamqp", "kombu.transport.redis"),
]
_LENGTH = 8  # bytes of the prefix that contains the length of a request


class Forked:
    """A forked program, with the interface of :class:`subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid
        #: The exit status, or minus the signal that ended the program; None until it was waited for.
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while the program is running."""
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program to exit; raise :class:`subprocess.TimeoutExpired` after *timeout* seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal if the program is running. Its pid is not reused until ``poll()`` has returned its status."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks. It exits together with this process, and then kills all forked programs."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])

    def start(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]
    ) -> Forked:
        """Start ``python -m module ...`` in the project's folder, in its own session.

        Arguments:
            environment: The complete environment.
            streams: File descriptors of standard input, output and error.
        """
        request = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        return Forked(self, self.ask(request, streams))

    def ask(self, request: Mapping[str, Any], streams: Sequence[int] = ()) -> Any:
        data = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._socket, [len(data).to_bytes(_LENGTH, "big")], streams)
            self._socket.sendall(data)
            return json.loads(_exactly(self._socket, int.from_bytes(_exactly(self._socket, _LENGTH), "big")))


@cache
def fork_server() -> ForkServer:
    """Return the fork server of this process, which is started on first use."""
    return ForkServer()


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := connection.recv(count - len(data))):
            raise EOFError("the other end of the fork server's socket is closed")
        data += more
    return data


# The other process


def _serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Process requests. This returns only in a fork, with the request that the fork must run and its streams."""
    alive: set[int] = set()
    while True:
        header, streams, _, _ = socket.recv_fds(connection, _LENGTH, 3)
        if not header:  # the tests have ended
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            sys.exit()
        header += _exactly(connection, _LENGTH - len(header))
        request = json.loads(_exactly(connection, int.from_bytes(header, "big")))
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            alive.discard(pid)
        else:
            in_session, tell = os.pipe()
            answer = os.fork()
            if answer == 0:
                os.setsid()
                os.close(in_session)
                os.close(tell)
                return request, streams
            os.close(tell)
            os.read(in_session, 1)  # from now on, its process group can be killed
            os.close(in_session)
            alive.add(answer)
            for stream in streams:
                os.close(stream)
        data = json.dumps(answer).encode()
        connection.sendall(len(data).to_bytes(_LENGTH, "big") + data)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Put this process into the state of a new interpreter just before it runs the module."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        if stream > 2:  # not one of the three standard streams
            os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for as long as the process lives
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    environment = request["environment"]
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = request["arguments"]
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
    for option in filter(None, environment.get("PYTHONWARNINGS", "").split(",")):
        action, message, category, *_ = [*option.split(":"), "", ""]
        module, _, name = category.rpartition(".")
        kind = getattr(import_module(module or "builtins"), name or "Warning")
        warnings.filterwarnings(action, message, kind)  # type: ignore[arg-type]


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        import_module(name)
    request, streams = _serve(connection)
    connection.close()
    _become(request, streams)
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

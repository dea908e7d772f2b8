"""A TCP proxy that injects network faults between the bridge and a healthy Redis."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_CHUNK = 65536
#: Bytes kept of the start of each connection, to identify it; the handshake comes first.
_BEGINNING = 2000


class Proxy:
    """A proxy from a free port of the loopback interface to *port*. It forwards everything until a fault is injected.

    ``done`` counts the injected faults, so that tests can assert that a fault happened.

    Arguments:
        port: Port of the server on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.done: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._open = threading.Event()  # bytes are forwarded while this is set
        self._open.set()
        self._refusing = False
        #: Called with the data that a client sends. The result is forwarded; None closes the connection.
        self._on_request: Callable[[_Pair, bytes], bytes | None] = lambda _, data: data
        #: Called with the data that the server sends. The result is forwarded.
        self._on_reply: Callable[[bytes], bytes] = lambda data: data
        self._chunk, self._pause_s = _CHUNK, 0.0
        #: The connection whose request will be delivered late.
        self._keeping: _Pair | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()
        self._open.set()
        self.cut()
        if self._keeping is not None:
            self._keeping.kept = b""
            self._keeping.close()

    # Faults

    def cut(self) -> None:
        """Close every connection."""
        with self._lock:
            pairs = list(self._pairs)
        self.done["cut"] += len(pairs)
        for pair in pairs:
            pair.close()

    def blackhole(self) -> None:
        """Accept everything and forward nothing, in either direction, until :meth:`heal`."""
        self.done["blackhole"] += 1
        self._open.clear()

    def silence(self, needle: bytes) -> None:
        """Discard replies to the clients whose first requests contain *needle*: half-open connections."""
        with self._lock:
            silenced = [pair for pair in self._pairs if needle in pair.beginning]
        for pair in silenced:
            pair.silent = True
        self.done["silenced"] += len(silenced)

    def refuse(self) -> None:
        """Close all connections, and close new ones at once, until :meth:`heal`."""
        self._refusing = True
        self.cut()

    def dribble(self, chunk: int, pause_s: float) -> None:
        """Send at most *chunk* bytes at a time to the client, with pauses, until :meth:`heal`."""
        self._chunk, self._pause_s = chunk, pause_s

    def heal(self) -> None:
        """Forward everything again."""
        self._refusing = False
        self._chunk, self._pause_s = _CHUNK, 0.0
        self._on_request = lambda _, data: data
        self._open.set()

    def drop_reply(self, needle: bytes) -> None:
        """Forward the next request that contains *needle*, and close its connection instead of forwarding the reply."""

        def on_request(pair: _Pair, data: bytes) -> bytes:
            if needle in data and self._once(on_request, "reply dropped"):
                pair.deaf = True
            return data

        self._on_request = on_request

    def hold_request(self, needle: bytes) -> None:
        """Discard the next request that contains *needle*; its client waits indefinitely."""

        def on_request(pair: _Pair, data: bytes) -> bytes:
            return b"" if needle in data and self._once(on_request, "request held") else data

        self._on_request = on_request

    def cut_after(self, needle: bytes, count: int) -> None:
        """Forward *count* bytes of the next request that contains *needle*, and close its connection."""

        def on_request(pair: _Pair, data: bytes) -> bytes | None:
            if needle in data and self._once(on_request, "request cut"):
                pair.server.sendall(data[:count])
                return None
            return data

        self._on_request = on_request

    def keep_request(self, needle: bytes) -> None:
        """Keep the next request that contains *needle* until :meth:`deliver`, and disconnect its client."""

        def on_request(pair: _Pair, data: bytes) -> bytes | None:
            if needle in data and self._once(on_request, "request kept"):
                pair.kept = data
                self._keeping = pair
                return None
            return data

        self._on_request = on_request

    def deliver(self) -> None:
        """Forward the kept request, long after its client timed out; ``done["late reply"]`` counts its replies."""
        if self._keeping is None:
            raise LookupError("no request was kept")
        self._keeping.delivered = True
        self._keeping.server.sendall(self._keeping.kept)

    def _once(self, rule: Callable[[_Pair, bytes], bytes | None], what: str) -> bool:
        with self._lock:
            if self._on_request is not rule:
                return False
            self._on_request = lambda _, data: data
            self.done[what] += 1
            return True

    # Forwarding

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                try:
                    if self._refusing:
                        raise ConnectionRefusedError
                    server = socket.create_connection(("127.0.0.1", self.target), timeout=1)
                except OSError:
                    self.done["refused"] += 1
                    client.close()
                    continue
                server.settimeout(None)
                pair = _Pair(client, server)
                with self._lock:
                    self._pairs.add(pair)
                for job in (self._requests, self._replies):
                    threading.Thread(target=self._forward, args=(pair, job), name="proxy", daemon=True).start()

    def _forward(self, pair: _Pair, job: Callable[[_Pair], None]) -> None:
        with suppress(OSError):  # one end is closed
            job(pair)
        pair.close()
        with self._lock:
            self._pairs.discard(pair)

    def _requests(self, pair: _Pair) -> None:
        while data := pair.client.recv(_CHUNK):
            pair.beginning = (pair.beginning + data)[:_BEGINNING]
            self._open.wait()
            passed = self._on_request(pair, data)
            if passed is None:
                return
            pair.server.sendall(passed)

    def _replies(self, pair: _Pair) -> None:
        while data := pair.server.recv(_CHUNK):
            self._open.wait()
            if pair.kept:  # its client is gone; replies to earlier requests may have been in transit
                self.done["late reply"] += pair.delivered
                continue
            if pair.deaf:
                return
            data = self._on_reply(data)
            while data and not pair.silent:
                try:
                    pair.client.sendall(data[: self._chunk])
                except OSError:
                    if pair.kept:  # the client has closed in the meantime
                        break
                    raise
                data = data[self._chunk :]
                if self._pause_s:
                    self.done["dribbled"] += 1
                    time.sleep(self._pause_s)


class _Pair:
    """The two ends of one forwarded connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        #: Whether the next reply is dropped.
        self.deaf = False
        #: Whether all further replies are dropped.
        self.silent = False
        #: The first bytes that the client sent.
        self.beginning = b""
        #: A request to be delivered later, and whether it was delivered. Its connection to the server stays open.
        self.kept = b""
        self.delivered = False

    def close(self) -> None:
        for end in (self.client,) if self.kept else (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

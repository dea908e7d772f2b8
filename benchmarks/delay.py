"""A TCP proxy that delays every byte, as the network to a distant server does; it runs in a separate process."""

from __future__ import annotations

import multiprocessing
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 1 << 16


@contextmanager
def delayed(port: int, one_way_s: float) -> Iterator[int]:
    """Yield a loopback port that forwards to *port*, with a delay of *one_way_s* in either direction."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = multiprocessing.Process(target=_serve, args=(listener, port, one_way_s), daemon=True)
        proxy.start()
        try:
            yield listener.getsockname()[1]
        finally:
            proxy.terminate()
            proxy.join()


def _serve(listener: socket.socket, port: int, one_way_s: float) -> None:
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for source, target in ((client, server), (server, client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A queue, because a delay must not add to the delay of the data that follows.
            in_transit: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=_receive, args=(source, in_transit, one_way_s), daemon=True).start()
            threading.Thread(target=_deliver, args=(target, in_transit), daemon=True).start()


def _receive(source: socket.socket, in_transit: queue.SimpleQueue[tuple[float, bytes]], one_way_s: float) -> None:
    data = b"?"
    while data:
        try:
            data = source.recv(_CHUNK)
        except OSError:
            data = b""
        in_transit.put((time.monotonic() + one_way_s, data))


def _deliver(target: socket.socket, in_transit: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    with suppress(OSError):
        while True:
            due_at, data = in_transit.get()
            time.sleep(max(0.0, due_at - time.monotonic()))
            if not data:
                break
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)

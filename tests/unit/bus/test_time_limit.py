"""Publishing takes no longer than ``publish_timeout_s``, whatever the server or the network does."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from celery import Celery

from bridge import BusUnavailable, Event, EventBus
from bridge.bus.running import install_tracking
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer

#: The limit in these tests, and by how much a busy machine may exceed it.
LIMIT_S, TOLERANCE_S = 0.6, 1.5
#: Longest pause between two attempts. No attempt follows if the pause would end after the limit.
PAUSE_S = 1.0


@contextmanager
def frozen(server: RedisServer) -> Iterator[None]:
    """Stop the process of a server within the block: it still accepts connections, and receives what fits buffers."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def unavailable_within(do: Callable[[], object], limit_s: float = LIMIT_S) -> str:
    """Return the text of the error of a call, after checking how long it took."""
    began = time.monotonic()
    with pytest.raises(BusUnavailable) as caught:
        do()
    took_s = time.monotonic() - began
    assert limit_s - PAUSE_S < took_s < limit_s + TOLERANCE_S
    return str(caught.value)


@contextmanager
def silent() -> Iterator[int]:
    """Yield the port of a server that accepts connections and never replies."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener.getsockname()[1]


@contextmanager
def blackhole() -> Iterator[int]:
    """Yield a port that answers no request for a connection, since its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(3):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            with suppress(BlockingIOError):
                filling.connect(address)
        yield address[1]


@contextmanager
def dribbling() -> Iterator[int]:
    """Yield the port of a server that replies to everything with one byte of an endless reply every 0.1 s."""

    def reply(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.recv(100)
            connection.sendall(b"$1000\r\n")
            while not stop.wait(0.1):
                connection.sendall(b"x")

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                stack.callback(connection.close)
                threading.Thread(target=reply, args=(connection,), daemon=True).start()

    stop = threading.Event()
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        stack.callback(stop.set)
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


CASES = {
    "silent": (silent, "redis://127.0.0.1:{0}/0"),
    "silent, with TLS": (silent, "rediss://127.0.0.1:{0}/0"),
    "silent Sentinels": (silent, "redis+sentinel://127.0.0.1:{0},127.0.0.1:{0}/bus"),
    "silent cluster": (silent, "redis+cluster://127.0.0.1:{0},localhost:{0}"),
    "no connection": (blackhole, "redis://127.0.0.1:{0}/0"),
    "no connection to Sentinels": (blackhole, "redis+sentinel://127.0.0.1:{0},127.0.0.1:{0}/bus"),
    "no connection to a cluster": (blackhole, "redis+cluster://127.0.0.1:{0},localhost:{0}"),
    "dribbling": (dribbling, "redis://127.0.0.1:{0}/0"),
    "dribbling, with TLS": (dribbling, "rediss://127.0.0.1:{0}/0"),
    "dribbling cluster": (dribbling, "redis+cluster://127.0.0.1:{0}"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_server_that_cannot_be_used(case: str, prefix: str) -> None:
    """Each call raises BusUnavailable in time, where a server or a network does not answer, or too slowly."""
    server, url = CASES[case]
    with server() as port:
        bus = EventBus(redis_url=url.format(port), channel_prefix=prefix, publish_timeout_s=LIMIT_S)
        for do in (lambda: bus.publish("a.b"), lambda: bus.get_event("x"), bus.connect):
            unavailable_within(do)
        bus.close()


def test_a_refused_connection_is_retried_until_the_limit(prefix: str) -> None:
    """If nothing listens, for example while Redis restarts, publishing is repeated until the limit."""
    bus = EventBus(redis_url="redis://127.0.0.1:1/0", channel_prefix=prefix, publish_timeout_s=2)
    unavailable_within(lambda: bus.publish("a.b"), 2)


def test_a_server_that_freezes(own_server: RedisServer, prefix: str) -> None:
    """If Redis stops responding, each call ends in time; the error says what to do, and that is safe."""
    with EventBus(redis_url=own_server.url, channel_prefix=prefix, publish_timeout_s=LIMIT_S) as bus:
        bus.publish("a.b", id="before")
        large = [Event(type="a.b", id=f"l{number}", payload="x" * 900_000) for number in range(10)]
        with frozen(own_server):
            text = unavailable_within(lambda: bus.publish("a.b", id="e"))
            for do in (lambda: bus.publish_many(large), lambda: bus.get_event("unknown"), bus.connect):
                unavailable_within(do)
        assert "publishing event e (a.b) failed" in text
        assert "It may have been published; publishing it again under the same id is safe." in text
        with EventBus(redis_url=own_server.url, channel_prefix=prefix) as patient:
            patient.publish("a.b", id="e")
            patient.publish_many(large)
        ids = [fields[b"id"].decode() for _, fields in bus.client.xrange(Keys(prefix).journal)]
        assert sorted(ids) == sorted(["before", "e", *(event.id for event in large)])


def test_threads_that_wait_for_a_connection(own_server: RedisServer, prefix: str) -> None:
    """Waiting for a free connection of the pool counts: all threads end in time, and publish again later."""
    url = f"{own_server.url}?max_connections=3"
    with EventBus(redis_url=url, channel_prefix=prefix, publish_timeout_s=LIMIT_S) as bus:
        took: list[float] = []

        def publish(number: int) -> None:
            began = time.monotonic()
            with suppress(BusUnavailable):
                bus.publish("a.b", id=f"e{number}")
                raise AssertionError("the server is not frozen")
            took.append(time.monotonic() - began)

        with frozen(own_server):
            threads = [threading.Thread(target=publish, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(took) == 12
        assert max(took) < LIMIT_S + TOLERANCE_S
        assert not bus.publish("a.b", id="after").duplicate


def test_other_commands_keep_their_own_timeout(own_server: RedisServer, prefix: str) -> None:
    """A connection that has published near the limit waits for ``socket_timeout_s`` in whatever it is used for next."""
    with EventBus(redis_url=f"{own_server.url}?max_connections=1", channel_prefix=prefix, publish_timeout_s=0.3) as bus:
        bus.publish("a.b")
        began = time.monotonic()
        assert bus.client.blpop([f"{prefix}nothing"], timeout=1) is None
        assert time.monotonic() - began > 0.9
        bus.publish("a.b")


def test_a_task_waits_longer(own_server: RedisServer, prefix: str) -> None:
    """Inside a task, ``task_publish_timeout_s`` counts."""
    limits = {"publish_timeout_s": 0.2, "task_publish_timeout_s": 1.5}
    install_tracking()
    with EventBus(redis_url=own_server.url, channel_prefix=prefix, **limits) as bus:

        def publish() -> str:
            return unavailable_within(lambda: bus.publish("a.b"), 1.5)

        with Celery(set_as_current=False) as app, frozen(own_server):
            assert app.task(publish).apply().get()
            unavailable_within(lambda: bus.publish("a.b"), 0.2)

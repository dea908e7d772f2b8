"""Shared by all benchmarks: names, events, processes, and the measurement of a rate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kombu.transport.redis import Transport
from redis import Redis

from bridge import Event, EventBus
from bridge.storage.keys import Keys

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "bench:"
#: List of the start delays of tasks: nanoseconds since the time in their payload.
STARTS = f"{PREFIX}starts"
GROUP = "bench"
#: kombu's default queue.
QUEUE = "celery"
#: How long to wait until all messages have arrived.
_PATIENCE_S = 300.0


class AnyTransport(Transport):
    """A transport that the bridge does not recognise as Redis, so that every row has the same server."""


def payload(size: int) -> dict[str, object]:
    """Return a payload of about *size* bytes of JSON."""
    return {"dreamId": 1, "text": "x" * max(1, size - 30)}


def event(number: int, size: int = 200) -> Event:
    """Return event *number*."""
    return Event(type="dream.created", id=f"e{number:07}-6d5c2d7c-9a10-4c0b-8a52", payload=payload(size), source="shop")


def external(number: int, size: int = 200) -> bytes:
    """Return such an event as a program in another language would write it."""
    fields = {"id": f"f{number:07}-6d5c2d7c-9a10-4c0b-8a52", "type": "dream.created", "payload": payload(size)}
    return json.dumps(fields | {"timestamp": 1_760_000_000_000, "source": "shop"}, separators=(",", ":")).encode()


def fill(url: str, events: int, size: int = 200) -> None:
    """Write a backlog to the journal of an empty bus; the group starts before it."""
    with EventBus(redis_url=url, channel_prefix=PREFIX, enable_pubsub=False, event_ttl_s=7 * 86_400) as bus:
        bus.client.flushall()
        bus.client.xgroup_create(Keys(PREFIX).journal, GROUP, id="0", mkstream=True)
        for start in range(0, events, 2000):
            bus.publish_many([event(number, size) for number in range(start, min(start + 2000, events))])


@contextmanager
def processes(url: str, command: Sequence[str], count: int = 1, **environment: str) -> Iterator[list[int]]:
    """Run ``celery -A benchmarks.app`` with *command*, *count* times, and yield the process ids."""
    settings = {"REDIS_URL": url, "BENCH_BROKER_URL": url, "PYTHONWARNINGS": "ignore"} | environment
    line = [sys.executable, "-m", "celery", "-A", "benchmarks.app", *command, "-l", "ERROR"]
    environment = os.environ | settings
    running = [subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(60)


def rate(client: Redis, total: int, queue: str = QUEUE) -> float:
    """Return messages per second from the first to the last of *total* in the queue."""
    return rate_of(lambda: int(client.llen(queue)), total, 0.002)


def rate_of(length_of: Callable[[], int], total: int, tick_s: float) -> float:
    """Return messages per second from the first to the last of *total*; read their number every *tick_s*."""
    deadline = time.monotonic() + _PATIENCE_S
    began_at, first = 0.0, 0
    while (length := length_of()) < total:
        now = time.monotonic()
        if length and not began_at:
            began_at, first = now, length
        if now > deadline:
            raise TimeoutError(f"{length} of {total} messages after {_PATIENCE_S:.0f} s")
        time.sleep(tick_s)
    return (total - first) / (time.monotonic() - began_at)


def broadcast(port: int, messages: Sequence[bytes]) -> None:
    """Write and publish events as fast as an external program could, with little processor time."""
    commands = bytearray()
    for number, data in enumerate(messages):
        key, channel = f"{PREFIX}event:f{number:07}-6d5c2d7c-9a10-4c0b-8a52".encode(), f"{PREFIX}dream.created".encode()
        for parts in ((b"SETEX", key, b"86400", data), (b"PUBLISH", channel, data)):
            commands += b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        replies = threading.Thread(target=drain, args=(connection,))
        replies.start()
        connection.sendall(commands)
        connection.shutdown(socket.SHUT_WR)
        replies.join()


def drain(connection: socket.socket) -> None:
    """Read and discard everything until the connection ends."""
    while connection.recv(1 << 16):
        pass

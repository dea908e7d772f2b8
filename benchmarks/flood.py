"""A flood of hostile messages: how much it delays valid events, and which dead letters and memory it leaves."""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
import time
from typing import NamedTuple

import psutil
from redis import Redis

from benchmarks.ours import SUBSCRIBE, Latency, take, wait_for_subscribers
from benchmarks.setting import GROUP, PREFIX, drain, processes
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer

#: Bursts of the flood per second.
_BURSTS_PER_S = 100
_VALID = "dream.created"


class Flooded(NamedTuple):
    """One run: latencies of valid events; memory of the subscriber (first, highest) and of Redis (first, last)."""

    latency: Latency
    hostile: int
    dead_letters: int
    rss_mb: tuple[float, float]
    redis_mb: tuple[float, float]


def hostile(number: int) -> tuple[str, bytes]:
    """Return type and text of a hostile message, different for each *number*."""
    n = b"%d" % number
    event = b'{"id":"x%d","type":"dream.created",' % number
    kinds: list[tuple[str, bytes]] = [
        (_VALID, b"{'id':'" + n + b"'}"),
        (_VALID, b"[" + n + b"]"),
        (_VALID, event + b'"payload":NaN}'),
        (_VALID, event + b'"payload":' + b"9" * 400 + b"}"),
        (_VALID, event + b'"payload":' + b"[" * 2000 + n),
        (_VALID, rb'{"id":"\ud800%b","type":"dream.created"}' % n),
        (_VALID, b"\xff\xfe" + n),
        (_VALID, b'{"type":"dream.created","payload":%b}' % n),
        (_VALID, b'{"id":"a b %b","type":"dream.created"}' % n),
        (_VALID, b'{"id":"%b","type":"event:%b"}' % (n, n)),
        (f"dream.n{number}", b'{"id":"y%b","type":"dream.other"}' % n),
        (f"x{number} *?[", b'{"id":"z%b"}' % n),
        ("other.kind", b'{"id":"taken","type":"other.kind","payload":%b}' % n),
        (_VALID, event + b'"metadata":{"hops":99}}'),
        (_VALID, event + b'"payload":{"__type__":"a","__value__":"b"}}'),
        (_VALID, event + b'"payload":"' + b"x" * 5000),
        (_VALID, b" " * (number % 50)),
        (_VALID, event + b'"metadata":[%b]}' % n),
    ]
    if number % 1000 == 999:
        return _VALID, event + b'"payload":"' + b"x" * 1_100_000 + b'"}'
    return kinds[number % len(kinds)]


def flood(server: RedisServer, seconds: float, per_s: int, valid_per_s: int = 100) -> Flooded:
    """Broadcast *per_s* hostile messages a second, and valid events, whose latency to their queue is measured."""
    count = int(valid_per_s * seconds)
    with Redis.from_url(server.url) as client:
        client.flushall()
    with Redis.from_url(server.url) as client, processes(server.url, SUBSCRIBE) as (pid,):
        ours, theirs = multiprocessing.Pipe()
        taker = multiprocessing.Process(target=take, args=(server.url, count, theirs))
        taker.start()
        theirs.close()
        wait_for_subscribers(client, 1)
        attacker = multiprocessing.Process(target=_attack, args=(server.port, per_s, seconds + 1))
        if per_s:
            attacker.start()
        watched = _Watched(psutil.Process(pid), client)
        try:
            _publish(client, count, valid_per_s)
            latencies: list[float] = ours.recv()
        finally:
            if per_s:
                attacker.join()
        taker.join()
        dead_letters = client.xlen(Keys(PREFIX).dead(GROUP))
        return Flooded(Latency.of(latencies), int(per_s * (seconds + 1)), dead_letters, *watched.ended())


class _Watched:
    """Measures the memory of the subscriber and of Redis, from now on."""

    def __init__(self, subscriber: psutil.Process, client: Redis) -> None:
        self._subscriber = subscriber
        self._client = client
        self._rss = [self._rss_mb()]
        self._used = self._used_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def ended(self) -> tuple[tuple[float, float], tuple[float, float]]:
        self._stop.set()
        self._thread.join()
        return (self._rss[0], max(self._rss)), (self._used, self._used_mb())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._rss.append(self._rss_mb())

    def _rss_mb(self) -> float:
        return self._subscriber.memory_info().rss / 1e6

    def _used_mb(self) -> float:
        return float(self._client.info("memory")["used_memory"]) / 1e6


def _publish(client: Redis, count: int, per_s: int) -> None:
    due_at = time.perf_counter()
    for number in range(count):
        due_at += 1 / per_s
        time.sleep(max(0.0, due_at - time.perf_counter()))
        fields = {"id": f"valid-{number}", "type": _VALID, "timestamp": time.time_ns() // 1_000_000}
        data = json.dumps(fields | {"payload": {"at_ns": time.time_ns()}, "source": "shop"}).encode()
        with client.pipeline(transaction=False) as pipe:
            pipe.set(f"{PREFIX}event:valid-{number}", data, ex=86_400)
            pipe.publish(f"{PREFIX}{_VALID}", data)
            pipe.execute()


def _attack(port: int, per_s: int, seconds: float) -> None:
    """Broadcast hostile messages in bursts; the replies of the server are discarded."""
    number = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        replies = threading.Thread(target=drain, args=(connection,))
        replies.start()
        due_at = time.perf_counter()
        for _ in range(int(seconds * _BURSTS_PER_S)):
            burst = bytearray()
            for _ in range(per_s // _BURSTS_PER_S):
                event_type, data = hostile(number)
                number += 1
                channel = f"{PREFIX}{event_type}".encode()
                burst += b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(data), data)
            connection.sendall(burst)
            due_at += 1 / _BURSTS_PER_S
            time.sleep(max(0.0, due_at - time.perf_counter()))
        connection.shutdown(socket.SHUT_WR)
        replies.join()

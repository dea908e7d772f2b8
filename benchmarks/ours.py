"""The bridge: publishing, dispatch, intake and their latencies, in the same processes that users start."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from base64 import b64decode
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import psutil
from celery import Celery, current_app
from redis import Redis

from benchmarks.delay import delayed
from benchmarks.setting import PREFIX, QUEUE, STARTS, broadcast, external, fill, payload, processes, rate
from bridge import Event, EventBus, get_bus, publish_event
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer

SUBSCRIBE = ("bus", "subscribe")
#: Database and transport of each kind of broker.
BROKERS = {
    "the same Redis": ("/0", ""),
    "another Redis": ("/1", ""),
    "any other": ("/1", "benchmarks.setting:AnyTransport"),
}
#: After this time a subscriber has done its second scan for late event keys.
_SETTLED_S = 4.0


def publish(server: RedisServer, count: int, *, in_task: bool = False) -> float:
    """publish_event() repeatedly in one thread: events per second."""
    app, others = Celery("publisher"), current_app._get_current_object()
    app.conf.bridge_redis_url = server.url

    @app.task(ignore_result=True, shared=False)
    def publish_all() -> float:
        began_at = time.perf_counter()
        for _ in range(count):
            publish_event("dream.created", payload(200))
        return time.perf_counter() - began_at

    with Redis.from_url(server.url) as client:
        client.flushall()
    try:
        publish_event("dream.created", payload(200))
        return count / (publish_all.apply().get() if in_task else publish_all())
    finally:
        get_bus().close()
        others.set_current()


def publish_many(server: RedisServer, count: int) -> float:
    """publish_many(): events per second."""
    with EventBus(redis_url=server.url, channel_prefix=PREFIX) as bus:
        bus.client.flushall()
        events = [Event(type="dream.created", payload=payload(200)) for _ in range(count)]
        began_at = time.perf_counter()
        bus.publish_many(events)
        return count / (time.perf_counter() - began_at)


def dispatch(
    server: RedisServer,
    count: int,
    *,
    size: int = 200,
    handlers: int = 1,
    broker: str = "the same Redis",
    listens: bool = False,
) -> float:
    """A backlog from journal to queue by one subscriber: events per second.

    Arguments:
        listens: Whether it also listens to broadcasts, as by default: then it scans the event keys when it starts.
    """
    fill(server.url, count, size)
    database, transport = BROKERS[broker]
    url = server.url.replace("/0", database)
    environment = {"BENCH_BROKER_URL": url, "BENCH_TRANSPORT": transport}
    environment |= {"BENCH_HANDLERS": str(handlers), "BENCH_PUBSUB": "1" if listens else "0"}
    with Redis.from_url(url) as client, processes(server.url, SUBSCRIBE, **environment):
        return rate(client, count * handlers) / handlers


def external_events(server: RedisServer, count: int, subscribers: int) -> float:
    """Events of another program, from pub/sub to queue: events per second."""
    messages = [external(number) for number in range(count)]
    with Redis.from_url(server.url) as client:
        client.flushall()
        client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        with processes(server.url, SUBSCRIBE, subscribers):
            wait_for_subscribers(client, subscribers)
            publisher = multiprocessing.Process(target=broadcast, args=(server.port, messages))
            publisher.start()
            try:
                return rate(client, count)
            finally:
                publisher.join()


class Latency(NamedTuple):
    """Milliseconds since publish_event()."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values_ms: list[float]) -> Latency:
        """Return the quantiles of *values_ms*."""
        percentiles = statistics.quantiles(values_ms, n=100)
        return cls(percentiles[49], percentiles[98], max(values_ms))


def latency(server: RedisServer, per_s: float, seconds: float, *, to_task: bool = False, rtt_ms: float = 0) -> Latency:
    """Publish events at a fixed rate, and measure the time until each is in its queue, or its task starts."""
    count = int(per_s * seconds)
    command = ("worker", "-c", "1", "--without-gossip", "--without-mingle") if to_task else SUBSCRIBE
    with Redis.from_url(server.url) as client, ExitStack() as stack:
        client.flushall()
        port = stack.enter_context(delayed(server.port, rtt_ms / 2000)) if rtt_ms else server.port
        url = f"redis://127.0.0.1:{port}/0"
        with processes(url, command), EventBus(redis_url=url, channel_prefix=PREFIX) as bus:
            ours, theirs = multiprocessing.Pipe()
            if not to_task:
                taker = multiprocessing.Process(target=take, args=(server.url, count + 1, theirs))
                taker.start()
                theirs.close()  # so that the pipe ends with the process
            _wait_until_ready(bus, client, to_task)
            due_at = time.perf_counter()
            for _ in range(count):
                due_at += 1 / per_s
                time.sleep(max(0.0, due_at - time.perf_counter()))
                bus.publish("dream.created", payload(200) | {"at_ns": time.time_ns()})
            if to_task:
                while client.llen(STARTS) < count + 1:
                    time.sleep(0.05)
                return Latency.of([int(delay_ns) / 1e6 for delay_ns in client.lrange(STARTS, 1, -1)])
            values: list[float] = ours.recv()
            taker.join()
            return Latency.of(values[1:])


def wait_for_subscribers(client: Redis, count: int) -> None:
    """Wait until *count* subscribers are listening and have completed their catch-up scans."""
    while client.pubsub_numsub(Keys(PREFIX).heartbeat)[0][1] < count:
        time.sleep(0.05)
    time.sleep(_SETTLED_S)


def _wait_until_ready(bus: EventBus, client: Redis, to_task: bool) -> None:
    wait_for_subscribers(client, 1)
    bus.publish("dream.created", payload(200) | {"at_ns": time.time_ns()})
    while to_task and not client.llen(STARTS):
        time.sleep(0.05)


def take(url: str, count: int, results: Connection) -> None:
    """Consume *count* messages from the queue, and send their delays, in ms since the time in their payload."""
    values = []
    with Redis.from_url(url, socket_timeout=None) as client:  # the first message arrives when a subscriber is ready
        while len(values) < count:
            _, text = client.brpop([QUEUE])
            now_ns = time.time_ns()
            (event,), *_ = json.loads(b64decode(json.loads(text)["body"]))
            values.append((now_ns - event["payload"]["at_ns"]) / 1e6)
    results.send(values)


class Drained(NamedTuple):
    """A tenth of a large backlog: events left at its end, events per second, and the subscriber's memory."""

    left: int
    per_s: float
    rss_mb: float


def backlog(server: RedisServer, count: int) -> list[Drained]:
    """Drain a large backlog; meanwhile the queue is trimmed, as if workers consumed it."""
    fill(server.url, count)
    tenths: list[Drained] = []
    with Redis.from_url(server.url) as client, processes(server.url, SUBSCRIBE, BENCH_PUBSUB="0") as (pid,):
        subscriber, taken = psutil.Process(pid), 0
        while not client.llen(QUEUE):
            time.sleep(0.002)
        at, done_then = time.monotonic(), 0
        while len(tenths) < 10:
            length = client.llen(QUEUE)
            if taken + length >= (len(tenths) + 1) * count // 10:
                now = time.monotonic()
                done = taken + length
                memory = subscriber.memory_info().rss / 1e6
                tenths.append(Drained(count - done, (done - done_then) / (now - at), memory))
                at, done_then = now, done
            if length > 20_000:
                client.ltrim(QUEUE, 0, -10_001)  # frees without a reply of many megabytes
                taken += 10_000
            time.sleep(0.005)
    return tenths


def machine(server: RedisServer) -> dict[str, Any]:
    """Return facts about this machine, for the results."""
    with Redis.from_url(server.url) as client:
        return {"cores": psutil.cpu_count(), "redis": client.info("server")["redis_version"]}

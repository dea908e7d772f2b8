"""What one subscriber, one journal and one Redis can do, and what more of them would.

Each stage is measured as processor time for each event, which holds on any number of machines: of the subscriber, of the
workers, and of the Redis of bus and of broker. A simulation then puts them together as they would be on machines that this
one is not: stations with so many servers, and events that pass through them in order.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from redis import Redis

from benchmarks.ours import SUBSCRIBE, wait_for_subscribers
from benchmarks.setting import PREFIX, QUEUE, STARTS, broadcast, event, fill, foreign, processes
from bridge import EventBus
from bridge.devserver import RedisServer

#: One process that runs one task at a time, and no subscriber.
WORKER = ("worker", "-c", "1", "--no-subscriber", "--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass(frozen=True)
class Costs:
    """Microseconds of processor time for each event, by stage; of a task, for each task."""

    publish_bus: float
    intake_bus: float
    intake_subscriber: float
    dispatch_bus: float
    dispatch_broker: float
    dispatch_subscriber: float
    task_bus: float
    task_broker: float
    task_worker: float


def costs(_: RedisServer) -> Costs:
    """Measure every stage on two private servers: one for the bus, one for the broker."""
    with RedisServer() as bus, RedisServer() as broker:
        publish_bus = _publish(bus, 20_000)
        intake = _intake(bus, 30_000)
        dispatch = _dispatch(bus, broker, 60_000)
        task = _tasks(bus, broker, 4000)
    return Costs(
        publish_bus,
        intake["bus"],
        intake["processes"],
        dispatch["bus"],
        dispatch["broker"],
        dispatch["processes"],
        task["bus"],
        task["broker"],
        task["processes"],
    )


def _publish(server: RedisServer, count: int) -> float:
    with EventBus(redis_url=server.url, channel_prefix=PREFIX) as bus:
        bus.client.flushall()
        bus.publish(event(0))
        with _spent({"bus": [server.pid]}, count) as spent:
            for number in range(1, count + 1):
                bus.publish(event(number))
    return spent["bus"]


def _intake(server: RedisServer, count: int) -> dict[str, float]:
    messages = [foreign(number) for number in range(count)]
    with Redis.from_url(server.url) as client:
        client.flushall()
        client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        # No handler matches: what is left is the intake.
        with processes(server.url, SUBSCRIBE, BENCH_HANDLERS="0") as pids:
            wait_for_subscribers(client, 1)
            with _spent({"bus": [server.pid], "processes": pids}, count) as spent:
                broadcast(server.port, messages)
                _wait(lambda: client.xlen("{%s}journal" % PREFIX) >= count)
    return spent


def _dispatch(bus: RedisServer, broker: RedisServer, count: int) -> dict[str, float]:
    fill(bus.url, count)
    addresses = {"BENCH_BROKER_URL": broker.url, "BENCH_PUBSUB": "0"}
    with Redis.from_url(broker.url) as client, processes(bus.url, SUBSCRIBE, **addresses) as pids:
        _wait(lambda: client.llen(QUEUE))
        before = client.llen(QUEUE)
        with _spent({"bus": [bus.pid], "broker": [broker.pid], "processes": pids}, count - before) as spent:
            _wait(lambda: client.llen(QUEUE) >= count)
    return spent


def _tasks(bus: RedisServer, broker: RedisServer, count: int) -> dict[str, float]:
    with Redis.from_url(broker.url) as client:
        client.ltrim(QUEUE, 0, count - 1)
    with Redis.from_url(bus.url) as client, processes(bus.url, WORKER, BENCH_BROKER_URL=broker.url) as pids:
        _wait(lambda: client.llen(STARTS))
        before = client.llen(STARTS)
        with _spent({"bus": [bus.pid], "broker": [broker.pid], "processes": pids}, count - before) as spent:
            _wait(lambda: client.llen(STARTS) >= count)
    return spent


@contextmanager
def _spent(stations: Mapping[str, Sequence[int]], count: int) -> Iterator[dict[str, float]]:
    """Yield what fills, when the block ends, with the microseconds that processes and their children took for each."""
    spent: dict[str, float] = {}
    before = {name: _processor_s(pids) for name, pids in stations.items()}
    yield spent
    spent |= {name: (_processor_s(pids) - before[name]) / count * 1e6 for name, pids in stations.items()}


def _processor_s(pids: Sequence[int]) -> float:
    all_of_them = [one for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return sum(times.user + times.system for times in (one.cpu_times() for one in all_of_them))


def _wait(done: Callable[[], Any], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


@dataclass(frozen=True)
class Site:
    """How many there are of each.

    Arguments:
        worker_cores: Each runs one task after the other.
        subscribers: Processes with a core of their own.
        journals: Each in a Redis of its own, with its part of the ledger.
        broker_apart: Whether Celery's broker is another Redis than that of the bus.
        task_us: What a handler does itself, besides Celery and the bridge.
    """

    worker_cores: int
    subscribers: int = 1
    journals: int = 1
    broker_apart: bool = True
    task_us: float = 0.0


def simulate(site: Site, spent: Costs, events: int = 20_000) -> tuple[float, str]:
    """Let *events* pass, all there at the beginning; return events per second, and the station that was busiest."""
    servers = {"subscriber": site.subscribers, "workers": site.worker_cores, "broker": 1}
    servers |= {f"journal {number}": 1 for number in range(site.journals)}
    free = {name: [0.0] * count for name, count in servers.items()}
    busy = dict.fromkeys(servers, 0.0)

    def steps(number: int) -> list[tuple[str, float]]:
        journal = f"journal {number % site.journals}"
        broker = "broker" if site.broker_apart else journal
        return [
            (journal, spent.publish_bus),
            ("subscriber", spent.dispatch_subscriber),
            (journal, spent.dispatch_bus),
            (broker, spent.dispatch_broker),
            (broker, spent.task_broker),
            (journal, spent.task_bus / 2),
            ("workers", spent.task_worker + site.task_us),
            (journal, spent.task_bus / 2),
        ]

    waiting = [(0.0, number, 0) for number in range(events)]
    ended_us = 0.0
    while waiting:
        at_us, number, step = heapq.heappop(waiting)
        name, takes_us = steps(number)[step]
        begins_us = max(at_us, heapq.heappop(free[name]))
        ends_us = begins_us + takes_us
        heapq.heappush(free[name], ends_us)
        busy[name] += takes_us
        if step < 7:
            heapq.heappush(waiting, (ends_us, number, step + 1))
        ended_us = max(ended_us, ends_us)
    busiest = max(servers, key=lambda name: busy[name] / servers[name])
    return events / ended_us * 1e6, busiest.rstrip("0123456789 ")


def subscribers(server: RedisServer, count: int) -> float:
    """A backlog, drained by so many subscribers to another Redis: events per second of all."""
    backlog = 60_000
    with RedisServer() as broker, Redis.from_url(broker.url) as client:
        fill(server.url, backlog)
        with processes(server.url, SUBSCRIBE, count, BENCH_BROKER_URL=broker.url, BENCH_PUBSUB="0"):
            _wait(lambda: client.llen(QUEUE))
            began_at, before = time.monotonic(), client.llen(QUEUE)
            _wait(lambda: client.llen(QUEUE) >= backlog)
            return (backlog - before) / (time.monotonic() - began_at)

"""The limit of one subscriber, one journal and one Redis, and what more of them would achieve.

For each stage, the processor time per event is measured: of the subscriber, of the workers, and of the Redis of bus and
of broker. These figures hold for any number of machines. A simulation then calculates what larger machines would do:
stages are stations with a number of servers, which the events pass in order.
"""

from __future__ import annotations

import heapq
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import psutil
from redis import Redis

from benchmarks.ours import SUBSCRIBE, wait_for_subscribers
from benchmarks.setting import GROUP, PREFIX, QUEUE, STARTS, broadcast, event, external, fill, processes, rate
from bridge import EventBus
from bridge.config.settings import BridgeSettings
from bridge.redis.client import connect
from bridge.storage.in_flight import Ended, InFlightTask, LedgerEntry
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer

#: One process that runs one task at a time, without a subscriber.
WORKER = ("worker", "-c", "1", "--no-subscriber", "--without-gossip", "--without-mingle", "--without-heartbeat")


#: Processes that use one Redis at the same time, so that it is always busy, as at its limit.
_AT_ONCE = 4


class Costs(NamedTuple):
    """Microseconds of processor time per event, by stage; for the tasks, per task."""

    publish_bus: float
    intake_bus: float
    intake_subscriber: float
    dispatch_bus: float
    dispatch_broker: float
    dispatch_subscriber: float
    task_bus: float
    task_broker: float
    task_worker: float


def costs(_: RedisServer | None = None) -> Costs:
    """Measure every stage on two private servers: one for the bus, one for the broker."""
    with RedisServer() as bus, RedisServer() as broker:
        publish_bus = _publish(bus, 20_000)
        intake = _intake(bus, 30_000)
        dispatch = _dispatch(bus, broker, 60_000)
        task = _tasks(bus, broker, 4000)
        task_bus = _ledger(bus, 20_000)
    return Costs(
        publish_bus,
        intake["bus"],
        intake["processes"],
        dispatch["bus"],
        dispatch["broker"],
        dispatch["processes"],
        task_bus,
        task["broker"],
        task["processes"],
    )


def _publish(server: RedisServer, count: int) -> float:
    with Redis.from_url(server.url) as client:
        client.flushall()
    return _at_once(server, _publish_some, range(count))


def _publish_some(url: str, numbers: Sequence[int]) -> None:
    with EventBus(redis_url=url, channel_prefix=PREFIX) as bus:
        for number in numbers:
            bus.publish(event(number))


def _ledger(server: RedisServer, count: int) -> float:
    """Measure start and end of a task, without a worker: one worker reaches only some hundred a second."""
    settings = BridgeSettings.load(redis_url=server.url, channel_prefix=PREFIX, group=GROUP)
    with connect(settings) as client:
        client.flushall()
        ledger = Storage(client, settings).ledger
        for start in range(0, count, 500):
            tasks = [(event(number).id, f"task{number}") for number in range(start, start + 500)]
            pairs = [
                (task_id, InFlightTask("handler0", event_id, "1-1", QUEUE, 0, 0).encode())
                for event_id, task_id in tasks
            ]
            ledger.acknowledge_sent([], [LedgerEntry(task_id, pair, 0) for task_id, pair in pairs])
    return _at_once(server, _run_some, range(count))


def _run_some(url: str, numbers: Sequence[int]) -> None:
    settings = BridgeSettings.load(redis_url=url, channel_prefix=PREFIX, group=GROUP)
    with connect(settings) as client:
        ledger = Storage(client, settings).ledger
        for number in numbers:
            ledger.start_run(f"task{number}", "run", idempotent=True)
            ledger.end(f"task{number}", Ended("", 1, QUEUE))


def _at_once(server: RedisServer, run: Callable[[str, Sequence[int]], None], numbers: Sequence[int]) -> float:
    running = [
        multiprocessing.Process(target=run, args=(server.url, numbers[first::_AT_ONCE])) for first in range(_AT_ONCE)
    ]
    with _spent({"bus": [server.pid]}, len(numbers)) as spent:
        for process in running:
            process.start()
        for process in running:
            process.join()
    return spent["bus"]


def _intake(server: RedisServer, count: int) -> dict[str, float]:
    messages = [external(number) for number in range(count)]
    with Redis.from_url(server.url) as client:
        client.flushall()
        client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        # No handler matches, so only the intake is measured.
        with processes(server.url, SUBSCRIBE, BENCH_HANDLERS="0") as pids:
            wait_for_subscribers(client, 1)
            with _spent({"bus": [server.pid], "processes": pids}, count) as spent:
                broadcast(server.port, messages)
                _wait(lambda: client.xlen(Keys(PREFIX).journal) >= count)
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
    """Yield a dict; at the end of the block it has the microseconds per event of the processes and their children."""
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
    """An installation to simulate.

    Arguments:
        worker_cores: Number of cores for workers; each runs one task at a time.
        subscribers: Number of processes, each with a separate core.
        journals: Number of journals, each in a separate Redis, with its part of the ledger.
        brokers: Number of servers over which the queues are spread.
        separate_broker: Whether Celery's broker is another Redis than the bus.
        task_us: Processor time of the handler itself, without Celery and the bridge.
    """

    worker_cores: int
    subscribers: int = 1
    journals: int = 1
    brokers: int = 1
    separate_broker: bool = True
    task_us: float = 0.0


def simulate(site: Site, spent: Costs, events: int = 20_000) -> tuple[float, str]:
    """Process *events* that are all there at the start; return events per second, and the busiest station."""
    servers = {"subscriber": site.subscribers, "workers": site.worker_cores, "broker": site.brokers}
    servers |= {f"journal {number}": 1 for number in range(site.journals)}
    free = {name: [0.0] * count for name, count in servers.items()}
    busy = dict.fromkeys(servers, 0.0)

    def steps(number: int) -> list[tuple[str, float]]:
        journal = f"journal {number % site.journals}"
        broker = "broker" if site.separate_broker else journal
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
    """Drain a backlog to another Redis with *count* subscribers; return their events per second in total."""
    backlog = 60_000
    with RedisServer() as broker, Redis.from_url(broker.url) as client:
        fill(server.url, backlog)
        with processes(server.url, SUBSCRIBE, count, BENCH_BROKER_URL=broker.url, BENCH_PUBSUB="0"):
            return rate(client, backlog)


def show(results: Mapping[str, Sequence[Any]]) -> None:
    """Print the cost of each stage, the rates with more subscribers, and the results of the simulation."""
    rounds: Sequence[Costs] = results["costs"]
    spent = Costs(*(statistics.median(column) for column in zip(*rounds, strict=True)))
    print("| µs per event | Redis of the bus | Redis as broker | publisher, subscriber or worker |\n|---|---|---|---|")
    print(f"| publish_event() | {spent.publish_bus:.0f} | | |")
    print(f"| intake of an event of another program | {spent.intake_bus:.0f} | | {spent.intake_subscriber:.0f} |")
    cells = (spent.dispatch_bus, spent.dispatch_broker, spent.dispatch_subscriber)
    print("| dispatch | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    print(f"| a task that does nothing | {spent.task_bus:.0f} | {spent.task_broker:.0f} | {spent.task_worker:.0f} |")
    for name in results:
        if name != "costs":
            print(f"\n{name}: {statistics.median(results[name]):,.0f} events per second")
    print("\n| worker cores | " + " | ".join(SITES) + " |\n|---|" + "---|" * len(SITES))
    for cores in (1, 4, 8, 16, 32, 64):
        row = [simulate(replace(site, worker_cores=cores), spent) for site in SITES.values()]
        print(f"| {cores} | " + " | ".join(f"{per_s:,.0f} ({busiest})" for per_s, busiest in row) + " |")


#: The installations that the simulation compares.
SITES = {
    "one Redis": Site(1, separate_broker=False),
    "separate broker": Site(1),
    "separate broker, tasks of 10 ms": Site(1, task_us=10_000),
    "two journals": Site(1, journals=2),
    "two journals, four brokers": Site(1, journals=2, brokers=4),
}
ROWS: dict[str, Callable[[RedisServer], Any]] = {
    "costs": costs,
    "1 subscriber": lambda server: subscribers(server, 1),
    "2 subscribers": lambda server: subscribers(server, 2),
}

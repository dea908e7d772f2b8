"""Processes that are killed, frozen, stopped or starved at the worst moments: other processes do their work, once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from typing import Any

import psutil
import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.support.processes import Processes
from tests.support.queues import Queues
from tests.support.site import QUICK_RECOVERY, Site
from tests.support.waiting import eventually


def subscribe(processes: Processes, name: str, **environment: str) -> Any:
    return processes.celery("bus", "subscribe", name=name, **QUICK_RECOVERY | environment)


def subscribe_from_the_start(processes: Processes, name: str, **environment: str) -> Any:
    """Like ``subscribe``, in an interpreter that does its imports first."""
    command = (sys.executable, "-m", "celery", "-A", "tests.app", "bus", "subscribe")
    return processes.start(*command, name=name, **QUICK_RECOVERY | environment)


def started(processes: Processes, *names: str) -> None:
    eventually(
        lambda: all("Subscriber subscribe@" in processes.log(name) for name in names),
        "the subscribers have started",
        30,
    )


def consumers_of(client: Redis, prefix: str, pid: int) -> list[str]:
    """Return the names of the consumers of a process, which end with a random part."""
    names = [row["name"].decode() for row in client.xinfo_consumers(Keys(prefix).journal, "tests")]
    return [name for name in names if name.startswith(f"subscribe@{os.uname().nodename}:{pid}:")]


def publish(bus: EventBus, ids: list[str]) -> None:
    bus.publish_many([Event(type="dream.made", id=event_id) for event_id in ids])


def all_dispatched(client: Redis, queues: Queues, prefix: str, ids: list[str]) -> None:
    """Wait until everything is dispatched; assert that all messages of one id have the same task id."""

    def settled() -> bool:
        groups = client.xinfo_groups(
            Keys(prefix).journal
        )  # no group exists before the first subscriber has created its own
        return [(one["pending"], one["lag"]) for one in groups] == [(0, 0)] and len(queues.tasks()) >= len(ids)

    eventually(settled, "all are dispatched", 40)
    assert set(queues.tasks()) == {f"tests.app.glob dream.made {event_id}" for event_id in ids}
    assert len({message["headers"]["id"] for message in queues.messages()}) == len(ids)


@pytest.mark.timeout(120)
def test_a_frozen_subscriber_is_replaced_and_harmless_when_it_thaws(
    processes: Processes, bus: EventBus, client: Redis, prefix: str, queues: Queues, site: Site
) -> None:
    """The entries of a frozen subscriber are claimed; its late acknowledgement changes neither group nor ledger."""
    frozen = subscribe(processes, "frozen", BRIDGE_BATCH_SIZE="20")
    started(processes, "frozen")
    numbers, ids = count(), list[str]()
    journal = Keys(prefix).journal
    eventually(lambda: client.exists(journal), "its group exists")
    (consumer,) = eventually(lambda: consumers_of(client, prefix, frozen.pid), "it is a consumer")

    def holds_entries() -> bool:
        frozen.send_signal(signal.SIGSTOP)
        if client.xpending_range(journal, "tests", "-", "+", 1, consumername=consumer):
            return True
        frozen.send_signal(signal.SIGCONT)
        more = [f"n{next(numbers)}" for _ in range(100)]
        publish(bus, more)
        ids.extend(more)
        return False

    eventually(holds_entries, "it is frozen in the middle of a batch")
    subscribe(processes, "other")
    all_dispatched(client, queues, prefix, ids)
    listed = site.ledger.size()
    frozen.send_signal(signal.SIGCONT)
    publish(bus, ["last"])
    all_dispatched(client, queues, prefix, [*ids, "last"])
    assert site.ledger.size() == listed + 1


def test_a_worker_killed_whole_in_its_task(site: Site, bus: EventBus) -> None:
    """If a worker is killed together with its pool during a task, another worker runs the task, with one effect."""
    worker = site.processes.worker("w1", "-c", "1", **QUICK_RECOVERY)
    bus.publish("slow.created", 2, id="e")
    eventually(lambda: site.client.exists(site.lease("e", "slow")), "the task runs")
    os.killpg(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    assert not site.effects()
    site.processes.worker("w2", **QUICK_RECOVERY)
    eventually(lambda: site.effects()["slow e"], "the task runs again", 30)
    eventually(lambda: site.ledger.size() == 0, "its end is recorded")
    assert site.effects() == {"slow e": 1}


def test_a_worker_whose_main_process_alone_is_killed(site: Site, bus: EventBus) -> None:
    """If only the main process is killed, its pool may finish the task and another worker may run it: one effect."""
    worker = site.processes.worker("w1", "-c", "1", **QUICK_RECOVERY)
    bus.publish("slow.created", 2, id="e")
    eventually(lambda: site.client.exists(site.lease("e", "slow")), "the task runs")
    worker.kill()
    assert worker.wait() == -signal.SIGKILL
    site.processes.worker("w2", **QUICK_RECOVERY)
    eventually(lambda: site.effects()["slow e"], "the task has had its effect", 30)
    eventually(lambda: site.ledger.size() == 0, "its end is recorded", 30)
    assert site.effects() == {"slow e": 1}


@pytest.mark.timeout(180)
def test_signals_at_any_moment(processes: Processes, bus: EventBus, client: Redis, prefix: str, queues: Queues) -> None:
    """A subscriber that receives any of the usual signals, even at its start, exits within 10 s; no event is lost."""
    seed = random.randrange(10**6)  # shown by pytest when the test fails
    moments = random.Random(seed)
    ways = [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGQUIT,), (signal.SIGHUP,), (signal.SIGTERM, signal.SIGTERM)]
    ids: list[str] = []

    def ends(process: Any) -> bool:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(10) is not None
        return False

    def end(way: tuple[signal.Signals, ...], name: str, after_s: float, running_on: list[str]) -> None:
        process = subscribe_from_the_start(processes, name, BRIDGE_BATCH_SIZE="10")
        time.sleep(after_s)  # the test is about this moment
        for one in way:
            process.send_signal(one)
        ended = ends(process)
        if not ended and "Exception ignored in" in processes.log(name):
            # Python drops a SIGINT that arrives while it cleans up after an import; our code cannot prevent that.
            process.send_signal(signal.SIGINT)
            ended = ends(process)
        if not ended:
            running_on.append(f"{way} after {after_s:.2f} s: {processes.log(name)[-2000:]}")

    for number in range(4):
        running_on: list[str] = []
        threads = [
            # Not earlier: Python swallows a SIGINT while it reads PYTHONWARNINGS, before any of our code runs.
            threading.Thread(target=end, args=(way, f"s{number}-{index}", moments.uniform(0.3, 4), running_on))
            for index, way in enumerate(ways)
        ]
        for thread in threads:
            thread.start()
        while alive := [thread for thread in threads if thread.is_alive()]:
            more = [f"n{len(ids) + offset}" for offset in range(10)]
            publish(bus, more)
            ids.extend(more)
            alive[0].join(0.02)
        assert running_on == [], f"seed {seed}"
    subscribe(processes, "last")
    all_dispatched(client, queues, prefix, ids)


@pytest.mark.timeout(120)
def test_a_pool_that_forks_for_every_task(site: Site, bus: EventBus) -> None:
    """With max_tasks_per_child=1, every task runs in a new fork of a process with threads; none of them hangs."""
    # Forks are slow here. If messages were redelivered in the meantime, tasks would start again between two attempts.
    patient = QUICK_RECOVERY | {"BRIDGE_REDISPATCH_AFTER_S": "60", "TEST_VISIBILITY_TIMEOUT_S": "120"}
    site.processes.worker("w1", "--max-tasks-per-child", "1", **patient)
    ids = [f"n{number}" for number in range(15)]
    bus.publish_many([Event(type="bound.created", id=event_id) for event_id in ids])
    expected = len(ids) * 4  # three attempts of each handler, and the handler of the event that they publish
    eventually(lambda: site.effects().total() >= expected, "all have run", 90)
    eventually(site.nothing_left, "no task is left")
    effects = site.effects()
    assert {name: many for name, many in effects.items() if name.startswith("bound")} == {
        f"bound {retries}": len(ids) for retries in range(3)
    }
    assert effects.total() == expected


@pytest.mark.timeout(120)
def test_a_worker_whose_broker_comes_and_goes(
    site: Site, bus: EventBus, own_server: RedisServer, client: Redis, prefix: str
) -> None:
    """From its start and through five losses of its broker, a worker has one subscriber, which fills the journal."""
    own_server.kill()
    broker = Redis.from_url(own_server.url)
    # Celery 5.7 ends a worker whose Redis broker is lost while the worker holds a message, so no copies are sent here.
    patient = QUICK_RECOVERY | {"BRIDGE_REDISPATCH_AFTER_S": "60", "TEST_VISIBILITY_TIMEOUT_S": "60"}
    site.processes.worker("w1", CELERY_BROKER_URL=own_server.url, **patient)
    for number in range(5):
        foreign = Event(type="dream.made", id=f"n{number}")
        client.set(f"{prefix}event:{foreign.id}", foreign.encode(), ex=60)
        client.publish(f"{prefix}{foreign.type}", foreign.encode())
        eventually(
            lambda length=number + 1: client.xlen(Keys(prefix).journal) == length, "the event is in the journal", 30
        )
        assert not site.effects()[f"glob n{number}"]
        own_server.start()
        eventually(lambda name=f"glob n{number}": site.effects()[name] == 1, "its task has run", 30)
        eventually(lambda: not broker.exists(f"broker:{prefix}unacked"), "its message is acknowledged")
        broker.ping()  # with the reply to this, the worker has the one to its acknowledgement
        own_server.kill()
    assert site.processes.log("w1").count("Subscriber w1@test") == 1
    broker.close()
    own_server.start()


@pytest.mark.timeout(120)
def test_a_rolling_restart(processes: Processes, bus: EventBus, client: Redis, prefix: str, queues: Queues) -> None:
    """Three subscribers that are restarted in turn under load dispatch every event and leave no consumer behind."""
    # No other subscriber removes a consumer during the test, neither one that has left nor one that is idle.
    patient = {"BRIDGE_CLAIM_IDLE_S": "60"}
    replicas = {name: subscribe(processes, name, **patient) for name in ("a0", "b0", "c0")}
    started(processes, *replicas)
    ids: list[str] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.wait(0.02):
            more = [f"n{len(ids) + offset}" for offset in range(10)]
            publish(bus, more)
            ids.extend(more)

    publisher = threading.Thread(target=load)
    publisher.start()
    try:
        for name in list(replicas):
            old = replicas.pop(name)
            old.send_signal(signal.SIGTERM)
            assert old.wait(10) == 0
            replicas[f"{name}-new"] = subscribe(processes, f"{name}-new", **patient)
            started(processes, f"{name}-new")
    finally:
        stop.set()
        publisher.join()
    all_dispatched(client, queues, prefix, ids)
    assert queues.length() == len(ids), "a graceful stop repeats nothing"
    pids = [replica.pid for replica in replicas.values()]
    eventually(
        lambda: (
            [len(consumers_of(client, prefix, pid)) for pid in pids] == [1] * len(pids)
            and len(client.xinfo_consumers(Keys(prefix).journal, "tests")) == len(pids)
        ),
        "the running subscribers are the consumers",
    )


def test_no_file_descriptors_left(
    processes: Processes, bus: EventBus, client: Redis, prefix: str, queues: Queues, own_server: RedisServer
) -> None:
    """A subscriber that cannot open a socket logs the error, does not spin, and continues as soon as it can."""
    process = psutil.Process(subscribe(processes, "poor", BRIDGE_REDIS_URL=own_server.url).pid)
    started(processes, "poor")
    with EventBus(redis_url=own_server.url, channel_prefix=prefix) as own_bus:
        publish(own_bus, ["before"])
        all_dispatched(own_bus.client, queues, prefix, ["before"])  # and acknowledged, or it would be sent again
        _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (3, hard))
        own_bus.client.client_kill_filter(_type="normal", skipme=True)
        own_bus.client.client_kill_filter(_type="pubsub")
        eventually(lambda: "Too many open files" in processes.log("poor"), "it logs the error")
        used_s, began = sum(process.cpu_times()[:2]), time.monotonic()
        eventually(lambda: time.monotonic() > began + 3, "three seconds have passed")
        assert sum(process.cpu_times()[:2]) - used_s < 0.2 * 3
        publish(own_bus, ["during"])
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
        eventually(lambda: queues.length() == 2, "it continues", 30)

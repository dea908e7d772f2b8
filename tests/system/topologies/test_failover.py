"""Primaries crash, freeze or change roles under load: acknowledged and replicated events are dispatched."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.chaos.site import FAST
from tests.support.processes import Processes
from tests.support.requirements import REDIS_KINDS, redis_binary
from tests.support.servers.clusters import ClusterServers
from tests.support.servers.sentinels import Replicated
from tests.support.waiting import eventually
from tests.system.topologies.load import Load

PASSWORD = "s3cret"


@pytest.fixture(params=list(REDIS_KINDS))
def binary(request: pytest.FixtureRequest) -> Path:
    return redis_binary(request.param)


class Workers:
    """A worker with a subscriber, its broker, and a Redis without faults for the effects of its tasks."""

    def __init__(self, directory: Path, bus_url: str, prefix: str) -> None:
        self._directory, self._bus_url, self._prefix = directory, bus_url, prefix
        self._broker, self._oracle = RedisServer(), RedisServer()

    def __enter__(self) -> Workers:
        self._broker.start()
        self._oracle.start()
        environment = FAST | {
            "BRIDGE_REDIS_URL": self._bus_url,
            "BRIDGE_CHANNEL_PREFIX": self._prefix,
            "CELERY_BROKER_URL": self._broker.url,
            "CHAOS_ORACLE_URL": self._oracle.url,
            "C_FORCE_ROOT": "1",
        }
        self.processes = Processes(self._directory, environment)
        options = ("--without-mingle", "--without-gossip", "-l", "INFO", "-c", "2")
        self.processes.celery("worker", *options, name="worker", app="tests.chaos.app")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.processes.end()
        for server in (self._oracle, self._broker):
            server.__exit__(*exc_info)

    def effects(self) -> Counter[str]:
        """Return how often each handler had its effect for each event."""
        return self._counted("runs")

    def _counted(self, key: str) -> Counter[str]:
        with Redis.from_url(self._oracle.url) as oracle:
            return Counter(value.decode() for value in oracle.lrange(key, 0, -1))

    def judge(self, name: str, loads: list[Load], pauses: dict[str, float], bus: Any) -> None:
        """Wait until all accepted events have had their effects, and print a summary."""
        accepted = [event_id for load in loads for event_id in load.accepted]
        refused = Counter(kind for load in loads for kind, texts in load.refused.items() for _ in texts)
        wanted = {f"{handler} {event_id}" for event_id in accepted for handler in ("guarded", "witness")}

        def lost() -> list[str]:
            return sorted(wanted - self.effects().keys())

        try:
            eventually(lambda: not lost(), "all effects exist", 40)
        except pytest.fail.Exception:
            journal = {fields[b"id"].decode() for _, fields in bus.xrange(Keys(self._prefix).journal)}
            there = {pair: pair.split()[1] in journal for pair in lost()}
            pytest.fail(f"of {len(accepted)} events no effect, and whether it is in the journal: {there}")
        effects = self.effects()
        repeated = Counter(pair.split()[0] for pair, count in effects.items() if count > 1)
        again = sum(count - 1 for count in self._counted("deliveries").values())
        print(
            f"\n{name}: {len(accepted)} events acknowledged, 0 lost; "
            f"{', '.join(f'{what}: {pause:.1f} s without an acknowledgement' for what, pause in pauses.items())}; "
            f"{again} messages delivered again, effects repeated: {dict(repeated) or 0}; "
            f"refused publications: {dict(refused)}"
        )
        assert repeated["guarded"] == 0


def timed(load: Load, harm: Callable[[], Any]) -> float:
    """Inject a fault, wait until publications are accepted again, and return the longest pause."""
    began = time.monotonic()
    harm()
    load.goes_on()
    return load.longest_pause_s(began)


@pytest.fixture
def start_workers(tmp_path: Path, prefix: str) -> Iterator[Callable[[str], Workers]]:
    return lambda url: Workers(tmp_path, url, prefix)


@pytest.mark.timeout(150)
def test_sentinel_failovers_under_load(
    binary: Path, start_workers: Callable[[str], Workers], prefix: str, request: pytest.FixtureRequest
) -> None:
    """After the primary was killed, frozen or demoted, every acknowledged event has its effects.

    If the primary is dead, one replica with the event is enough, because Sentinels promote the one with the most data.
    A live primary may count a confirmation of the replica that is not promoted; in this case, all replicas are
    required.
    """
    with Replicated(binary, PASSWORD) as servers, start_workers(servers.url) as workers:

        def kill() -> None:
            old = servers.primary()
            old.kill()
            servers.wait_for_failover(old)

        def freeze() -> None:
            old = servers.primary()
            os.kill(old.pid, signal.SIGSTOP)
            try:
                servers.wait_for_failover(old)
            finally:
                os.kill(old.pid, signal.SIGCONT)
            servers.heal()

        def change_places() -> None:
            old = servers.primary()
            eventually(servers.fail_over, "a Sentinel accepts the command")
            servers.wait_for_failover(old)
            servers.heal()

        loads = []
        pauses: dict[str, float] = {}
        harms = {"killed": (kill, 1), "frozen": (freeze, 2), "made a replica": (change_places, 2)}
        for what, (harm, replicas) in harms.items():
            name = what.replace(" ", "-")
            settings = {"redis_url": servers.url, "channel_prefix": prefix, "wait_replicas": replicas}
            with Load("chaos.guarded", name, **settings) as load:
                eventually(workers.effects, "the worker runs tasks", 30)
                pauses[what] = timed(load, harm)
            loads.append(load)
            servers.heal()
        workers.judge(request.node.name, loads, pauses, servers.client())


@pytest.mark.timeout(150)
def test_cluster_failovers_under_load(
    binary: Path, start_workers: Callable[[str], Workers], prefix: str, request: pytest.FixtureRequest
) -> None:
    """After primaries without and with the journal were killed, every acknowledged event has its effects."""
    journal = Keys(prefix).journal
    with (
        ClusterServers(binary) as servers,
        start_workers(servers.url) as workers,
        Load("chaos.guarded", redis_url=servers.url, channel_prefix=prefix, wait_replicas=1) as load,
    ):
        eventually(workers.effects, "the worker runs tasks", 30)
        pauses: dict[str, float] = {}

        def kill(victim: RedisServer) -> None:
            replica = servers.replica_of(victim)
            victim.kill()
            eventually(lambda: replica in servers.primaries(), "its replica is promoted", 30)
            servers.heal()  # every publication waits for a replica, and no other server can be one for this primary

        owner = servers.owner(journal)
        other = next(server for server in servers.primaries() if server is not owner)
        for what, victim in {"another primary killed": other, "the journal's killed": owner}.items():
            pauses[what] = timed(load, lambda one=victim: kill(one))
        assert servers.owner(journal) is not owner
        load.__exit__()
        workers.judge(request.node.name, [load], pauses, servers.client())

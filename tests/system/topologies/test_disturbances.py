"""Errors of Redis while it is reconfigured under load (MOVED, ASK, CLUSTERDOWN, LOADING): the bridge recovers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import BusyLoadingError

from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.servers.clusters import ClusterServers
from tests.support.servers.sentinels import Replicated
from tests.support.waiting import eventually
from tests.system.topologies.load import Load


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    with ClusterServers() as servers:
        yield servers


@contextmanager
def under_load(
    url: str, prefix: str, start_subscriber: StartSubscriber, queues: Queues, **settings: Any
) -> Iterator[Any]:
    """Publish and dispatch during the block; afterwards every accepted event is dispatched with one task id."""
    subscriber = start_subscriber(redis_url=url, claim_idle_s=2.0, maintenance_interval_s=0.5, socket_timeout_s=5)
    with Load("dream.created", redis_url=url, channel_prefix=prefix, **settings) as load:
        yield load, subscriber
    expected = {f"t.exact dream.created {event_id}" for event_id in load.accepted}
    eventually(lambda: expected <= queues.tasks().keys(), f"{len(expected)} events are dispatched", 30)
    assert len({one["headers"]["id"] for one in queues.messages()}) == len(queues.tasks())
    assert len(load.accepted) == len(expected)


@contextmanager
def stopped(*servers: RedisServer) -> Iterator[None]:
    """Freeze servers during the block."""
    for server in servers:
        os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            os.kill(server.pid, signal.SIGCONT)


def test_the_journals_slot_moves(
    register_handlers, start_subscriber: StartSubscriber, queues: Queues, prefix: str, cluster: ClusterServers
) -> None:
    """The journal's slot moves to another primary and back; during the migration, ASK and TRYAGAIN are retried."""
    register_handlers("t.exact")
    journal = Keys(prefix).journal
    with under_load(cluster.url, prefix, start_subscriber, queues) as (load, _):
        source = cluster.owner(journal)
        target = next(server for server in cluster.primaries() if server is not source)
        for to in (target, source):
            before = len(load.refused.get("unavailable", []))
            cluster.move_slot(
                journal,
                to,
                halfway=lambda count=before: eventually(
                    lambda: len(load.refused.get("unavailable", [])) > count, "a publication reaches the migrating slot"
                ),
            )
            assert cluster.owner(journal) is to
            load.goes_on()
    assert any("TRYAGAIN" in text or "key" in text for text in load.refused["unavailable"])


def test_slots_of_event_keys_move(
    register_handlers, start_subscriber: StartSubscriber, queues: Queues, prefix: str, cluster: ClusterServers
) -> None:
    """Event keys are written and read at their current server while their slots move."""
    register_handlers("t.exact")
    with under_load(cluster.url, prefix, start_subscriber, queues) as (load, _):
        for number in range(3):
            key = f"{prefix}event:e{number}"
            source = cluster.owner(key)
            target = next(server for server in cluster.primaries() if server is not source)
            cluster.move_slot(key, target, halfway=load.goes_on)
            load.goes_on()


def test_a_cluster_without_its_majority(
    register_handlers, start_subscriber: StartSubscriber, queues: Queues, prefix: str, cluster: ClusterServers
) -> None:
    """While most primaries are frozen, CLUSTERDOWN is reported as an error; afterwards everything continues."""
    register_handlers("t.exact")
    owner = cluster.owner(Keys(prefix).journal)
    others = [server for server in cluster.primaries() if server is not owner]

    def down() -> bool:
        return cluster.ask(owner, "CLUSTER INFO")["cluster_state"] == "fail"

    with under_load(cluster.url, prefix, start_subscriber, queues) as (load, subscriber):
        with stopped(*others, *(cluster.replica_of(server) for server in others)):
            eventually(down, "the cluster is down", 15)
            eventually(lambda: subscriber.info().get("errors"), "the subscriber counts errors")
        load.goes_on()
    assert load.refused["unavailable"]
    cluster.wait_until_whole()


def test_a_server_that_loads_its_data(
    register_handlers, start_subscriber: StartSubscriber, queues: Queues, prefix: str, tmp_path: Path
) -> None:
    """While a restarted server replies LOADING for some seconds, publishers and subscribers retry."""
    register_handlers("t.exact")
    slow = ["--appendonly", "yes", "--appendfsync", "always", "--key-load-delay", "500"]
    slow += ["--loading-process-events-interval-bytes", "1024"]
    with RedisServer(arguments=slow) as server:
        with Redis.from_url(server.url) as admin:
            admin.mset({f"filler:{number}": "x" * 100 for number in range(4000)})
            admin.bgrewriteaof()
            eventually(lambda: not admin.info("persistence")["aof_rewrite_in_progress"], "the file has been rewritten")
        with under_load(server.url, prefix, start_subscriber, queues) as (load, _):
            server.kill()
            server.start()
            with Redis.from_url(server.url) as admin, pytest.raises(BusyLoadingError):
                admin.get("filler:1")
            load.goes_on()
        assert any("loading" in text for text in load.refused["unavailable"])


def test_without_sentinels_the_primary_serves_on(
    register_handlers, start_subscriber: StartSubscriber, queues: Queues, prefix: str
) -> None:
    """Without Sentinels, open connections keep working; new ones succeed as soon as a Sentinel is running again."""
    register_handlers("t.exact")
    with Replicated() as servers, under_load(servers.url, prefix, start_subscriber, queues) as (load, _):
        for sentinel in servers.sentinels:
            sentinel.kill()
        load.goes_on()
        with servers.direct(servers.servers[0]) as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
        eventually(
            lambda: any("no Sentinel" in text for text in load.refused.get("unavailable", [])),
            "the error names the Sentinels",
        )
        servers.sentinels[2].start()
        load.goes_on()

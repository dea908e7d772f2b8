"""Publications that count only when replicas have them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.config.settings import BridgeSettings
from bridge.errors import NotReplicated, SettingsError
from bridge.testing.redis_server import RedisServer
from tests.support.requirements import REDIS_KINDS, redis_binary
from tests.support.waiting import eventually


@pytest.fixture(scope="module", params=list(REDIS_KINDS))
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica."""
    binary = redis_binary(request.param)
    arguments = ["--repl-diskless-sync-delay", "0"]
    with (
        RedisServer(binary, arguments) as primary,
        RedisServer(binary, ["--replicaof", "127.0.0.1", str(primary.port)]) as replica,
        Redis.from_url(replica.url) as client,
    ):
        eventually(lambda: client.info("replication")["master_link_status"] == "up", "the replica has caught up")
        yield primary, replica


@pytest.fixture
def bus(servers: tuple[RedisServer, RedisServer], prefix: str) -> Iterator[EventBus]:
    settings = {"channel_prefix": prefix, "wait_replicas": 1, "wait_replicas_ms": 3000}
    with EventBus(redis_url=servers[0].url, **settings) as connected:
        yield connected


def test_what_no_replica_has_is_an_error(bus: EventBus, servers: tuple[RedisServer, RedisServer]) -> None:
    """A repeated publication waits again until the replica has the event, even if another connection wrote it."""
    _, replica = servers
    before = bus.publish("dream.created").event
    new = Event(type="dream.created")
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        with EventBus(bus.settings.model_copy(update={"wait_replicas_ms": 100})) as hasty:
            with pytest.raises(NotReplicated, match="0 replicas have confirmed it, bridge_wait_replicas requires 1"):
                hasty.publish(new)
            hasty.client.connection_pool.disconnect()
            for event in (before, new):
                with pytest.raises(NotReplicated):
                    hasty.publish(event)
            with pytest.raises(NotReplicated):
                hasty.publish_many([new, Event(type="dream.created")])
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    again = bus.publish(new)
    assert again.duplicate
    assert not again.conflict


def test_more_replicas_than_there_are(bus: EventBus) -> None:
    """If there are fewer replicas than required, the error contains their number."""
    wanting = bus.settings.model_copy(update={"wait_replicas": 2})
    with EventBus(wanting) as careful, pytest.raises(NotReplicated, match=r"1 replicas have confirmed it.*requires 2"):
        careful.publish("dream.created")


def test_waiting_ends_before_the_connection_is_given_up() -> None:
    """A wait that is longer than the socket timeout is refused at the start."""
    with pytest.raises(SettingsError, match="wait_replicas_ms must be shorter than publish_timeout_s"):
        BridgeSettings.load(wait_replicas=1, wait_replicas_ms=10_000, socket_timeout_s=10)

"""In a cluster, an event key and the journal are on different servers: the consequences, and how they are repaired."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from subprocess import PIPE

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from bridge import BridgeSettings, Event, EventBus
from bridge.events.encoded import EncodedEvent
from bridge.storage.journal import new_attempt
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.intake import catch_up
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.servers.clusters import ClusterServers
from tests.support.typescript_shapes import ARRIVING, REFUSED, SHAPES
from tests.support.waiting import eventually
from tests.system.topologies.sites import RedisWaiting, Site, Waiting

PUBLISHER = """
import sys
from bridge import EventBus
with EventBus() as bus:
    print("ready", flush=True)
    bus.publish("dream.created", id=sys.stdin.readline().strip())
    print("published", flush=True)
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[ClusterServers]:
    with ClusterServers() as running:
        yield running


@pytest.fixture(scope="module")
def site(servers: ClusterServers, server: RedisServer) -> Iterator[Site]:
    """A cluster as bus, and the shared server as broker."""
    with servers.client() as client, Redis.from_url(server.url) as broker:
        yield Site(servers.url, client, server.url, server.url, lambda prefix: RedisWaiting(broker, prefix))


@pytest.fixture
def everywhere(site: Site) -> RedisCluster:
    """redis-py's own client."""
    client: RedisCluster = site.client
    return client


@pytest.fixture
def apart(everywhere: RedisCluster, prefix: str) -> str:
    """An id whose event key is on another server than the journal."""
    home = everywhere.get_node_from_key(Keys(prefix).journal)
    return next(
        f"n{number}"
        for number in range(1000)
        if everywhere.get_node_from_key(Keys(prefix).event(f"n{number}")).name != home.name
    )


def test_a_publisher_that_dies_between_the_two_steps(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    waiting: Waiting,
    servers: ClusterServers,
    everywhere: RedisCluster,
    prefix: str,
    apart: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a publisher crashes between key and journal, the next catch-up scan finds the event and dispatches it."""
    monkeypatch.setattr(catch_up, "_RESCAN_INTERVAL_S", 0.0)
    register_handlers("t.exact")
    start_subscriber(maintenance_interval_s=0.2)
    keys, home = Keys(prefix), servers.owner(Keys(prefix).journal)
    environment = os.environ | {"BRIDGE_REDIS_URL": servers.url, "BRIDGE_CHANNEL_PREFIX": prefix}
    with subprocess.Popen([sys.executable, "-c", PUBLISHER], stdin=PIPE, stdout=PIPE, env=environment) as publisher:
        assert publisher.stdin is not None
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == b"ready\n"
        servers.ask(home, "CLIENT", "PAUSE", 20_000, "WRITE")
        try:
            publisher.stdin.write(f"{apart}\n".encode())
            publisher.stdin.flush()
            eventually(lambda: everywhere.exists(keys.event(apart)), "the event is in its key")
            publisher.kill()
            assert publisher.stdout.read() == b""
        finally:
            publisher.kill()
            servers.ask(home, "CLIENT", "UNPAUSE")
    eventually(lambda: waiting.tasks() == {f"t.exact dream.created {apart}": 1}, "it is dispatched")
    assert everywhere.xlen(keys.journal) == 1


def test_an_id_that_is_taken_keeps_its_first_event(everywhere: RedisCluster, bus: EventBus, apart: str) -> None:
    """A conflict writes nothing, whether the key of the first event still exists or not."""
    key = Keys(bus.settings.channel_prefix).event(apart)
    first = bus.publish("dream.created", {"n": 1}, id=apart).event
    assert bus.publish("dream.created", {"n": 2}, id=apart).conflict
    assert everywhere.get(key) == first.encode()
    everywhere.delete(key)
    assert bus.publish("dream.created", {"n": 2}, id=apart).conflict
    assert not everywhere.exists(key)


def test_a_key_that_somebody_else_wrote_is_replaced(everywhere: RedisCluster, bus: EventBus, apart: str) -> None:
    """A key that another program wrote is replaced by the published event, as on a single server."""
    key = Keys(bus.settings.channel_prefix).event(apart)
    everywhere.set(key, "something else")
    event = bus.publish("dream.created", id=apart).event
    assert everywhere.get(key) == event.encode()
    assert 0 < everywhere.pttl(key) <= bus.settings.event_ttl_ms


def test_the_events_of_the_typescript_bus(
    register_handlers,
    start_subscriber: StartSubscriber,
    everywhere: RedisCluster,
    settings: BridgeSettings,
    client: Redis,
    bus: EventBus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its events arrive with the sources in their keys, which are on all servers; an overwritten key is noticed."""
    # No scan comes before a broadcast: an invalid key of a valid broadcast would have its own dead letter.
    monkeypatch.setattr(catch_up, "_LATE_KEY_S", 3600.0)
    register_handlers("t.all")
    start_subscriber()
    keys = Keys(settings.channel_prefix)
    for shape in SHAPES:
        everywhere.set(keys.event(shape.id), shape.kept, ex=3600)
        everywhere.publish(keys.channel(shape.type), shape.broadcast)
    letters = Storage(client, settings).dead_letters
    eventually(lambda: client.xlen(keys.journal) >= len(ARRIVING), "those that arrive are appended")
    eventually(lambda: len(letters.latest(999)) >= len(REFUSED), "the others are dead letters")
    events = [Event.decode(fields[b"event"], max_bytes=10_000) for _, fields in client.xrange(keys.journal)]
    by_id = {event.id: event for event in events}
    assert [by_id[shape.arrived()["id"]].to_dict() for shape in ARRIVING] == [shape.arrived() for shape in ARRIVING]
    assert sorted(one.reason for one in letters.latest(999)) == sorted(shape.outcome.reason for shape in REFUSED)
    everywhere.set(keys.event("event-123"), Event(type="a.b", id="event-123").encode(), ex=3600)
    assert bus.get_event("event-123") == by_id["event-123"]


def test_a_lost_reply_publishes_once(everywhere: RedisCluster, settings: BridgeSettings, client: Redis) -> None:
    """A publication that is repeated with the same token has one entry and the same result."""
    journal, event = Storage(client, settings).journal, Event(type="dream.created", id="again")
    attempts = [new_attempt()]
    records = [EncodedEvent.of(event, event.encode())]
    for _ in range(2):
        assert journal.publish(records, attempts, broadcast=True) == ["appended"]
    assert everywhere.xlen(Keys(settings.channel_prefix).journal) == 1


def test_a_repeated_id_is_remembered_as_long_as_its_key(everywhere: RedisCluster, bus: EventBus, apart: str) -> None:
    """A key that is written again expires before the mark, so catch-up does not take it for a new event."""
    keys = Keys(bus.settings.channel_prefix)
    bus.publish("dream.created", id=apart)
    everywhere.delete(keys.event(apart))
    everywhere.pexpire(keys.seen(apart), 60_000)
    assert bus.publish("dream.created", id=apart).duplicate
    assert everywhere.pttl(keys.seen(apart)) > everywhere.pttl(keys.event(apart)) > 0

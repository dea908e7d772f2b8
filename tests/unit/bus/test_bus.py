"""The event bus on Redis, as a program that imports ``bridge`` uses it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr
from redis import Redis

from bridge import BridgeError, BridgeSettings, BusUnavailable, Event, EventBus, HopLimitExceeded, InvalidEvent
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.support.scrape import RoundTrips
from tests.support.waiting import eventually


@pytest.fixture
def bus(each_server: RedisServer, prefix: str) -> Iterator[EventBus]:
    with EventBus(redis_url=each_server.url, channel_prefix=prefix, source="tests") as connected:
        yield connected


def other_process(bus: EventBus, **settings: object) -> EventBus:
    """A bus that shares only the server with *bus*, like one in another process."""
    url, prefix = bus.settings.url, bus.settings.channel_prefix
    return EventBus(**{"redis_url": url, "channel_prefix": prefix, "source": "other"} | settings)


def test_publishing_writes_key_journal_and_broadcast(bus: EventBus) -> None:
    """A publication is in its key with a TTL of 24 h, once in the journal, and on its channel, as the same JSON."""
    keys = Keys(bus.settings.channel_prefix)
    with bus.client.pubsub() as listener:
        listener.psubscribe(keys.all_channels)
        assert listener.get_message(timeout=5)["type"] == "psubscribe"
        event = bus.publish("dream.created", {"dreamId": 7}).event
        message = listener.get_message(timeout=5)
    stored = bus.client.get(keys.event(event.id))
    ((_, entry),) = bus.client.xrange(keys.journal)
    assert Event.decode(stored, max_bytes=10_000) == event
    assert message["channel"].decode() == keys.channel("dream.created")
    assert stored == message["data"] == entry[b"event"]
    assert 86_000 < bus.client.ttl(keys.event(event.id)) <= 86_400
    assert 86_400 + 3_500 < bus.client.ttl(keys.seen(event.id)) <= 90_000


def test_publishing_the_same_id_again_changes_nothing(bus: EventBus) -> None:
    """A second publication of an id writes and broadcasts nothing, and is reported as a duplicate."""
    heard: list[Event] = []
    bus.subscribe("*", heard.append)
    first = bus.publish("a.b", 1, id="same")
    again = bus.publish("a.b", 2, id="same")
    elsewhere = other_process(bus).publish("a.b", 3, id="same")
    assert [first.duplicate, again.duplicate, elsewhere.duplicate] == [False, True, True]
    assert [first.conflict, again.conflict, bus.publish("a.b", 1, id="same").conflict] == [False, True, False]
    assert bus.client.xlen(Keys(bus.settings.channel_prefix).journal) == 1
    assert bus.get_event("same").payload == 1
    assert [event.payload for event in heard] == [1]


def test_publish_many_is_pipelined_and_tells_duplicates(bus: EventBus) -> None:
    """Many events are published in order, and each is reported as new or duplicate, also within one batch."""
    events = [Event(type="a.b", payload=number, id=f"n{number % 1200}") for number in range(1300)]
    publications = bus.publish_many(iter(events))
    assert [publication.duplicate for publication in publications] == [False] * 1200 + [True] * 100
    entries = bus.client.xrange(Keys(bus.settings.channel_prefix).journal)
    assert [fields[b"id"].decode() for _, fields in entries] == [f"n{number}" for number in range(1200)]


def test_large_events_take_more_round_trips(bus: EventBus, round_trips: RoundTrips) -> None:
    """A round trip carries about 4 MB, however many events a batch has: each has the same time."""
    small, large = ([Event(type="a.b", payload="x" * size) for _ in range(10)] for size in (1, 900_000))
    assert round_trips(lambda: bus.publish_many(small)) == 1
    assert round_trips(lambda: bus.publish_many(large)) == 2


def test_local_handlers_hear_own_and_foreign_events_once(bus: EventBus) -> None:
    """A local handler receives the events of this and of other processes, each once."""
    heard: list[tuple[str, str | None]] = []
    bus.subscribe("dream.*", lambda event: heard.append((event.id, event.source)))
    other = other_process(bus)
    bus.publish("dream.created", id="own")
    other.publish("dream.created", id="foreign")
    other.publish("unrelated.created", id="unrelated")
    other.publish("dream.created", id="last")
    eventually(lambda: ("last", "other") in heard, "the last event is received")
    assert heard == [("own", "tests"), ("foreign", "other"), ("last", "other")]


def test_unsubscribed_and_raising_handlers(bus: EventBus) -> None:
    """A handler that raises stops no other handler, and an unsubscribed handler receives nothing more."""
    heard: list[str] = []

    def raising(event: Event) -> None:
        raise RuntimeError("as intended")

    bus.subscribe("*", raising)
    unsubscribe = bus.subscribe("*", lambda event: heard.append(event.id))
    bus.publish("a.b", id="one")
    unsubscribe()
    bus.publish("a.b", id="two")
    assert heard == ["one"]


def test_a_message_that_is_no_event_does_not_stop_the_listener(bus: EventBus) -> None:
    """An invalid message on a channel is skipped, and the next event is received."""
    heard: list[str] = []
    bus.subscribe("*", lambda event: heard.append(event.id))
    bus.client.publish(bus.settings.channel_prefix + "a.b", b"\xff{")
    other_process(bus).publish("a.b", id="after")
    eventually(lambda: heard == ["after"], "the event after the invalid message is received")


@pytest.mark.parametrize(
    ("persistence", "pubsub", "in_redis", "heard_elsewhere"),
    [(True, True, True, True), (True, False, True, False), (False, True, False, True), (False, False, False, False)],
    ids=["both", "persistence only", "pubsub only", "neither"],
)
def test_switches_work_alone(
    bus: EventBus, persistence: bool, pubsub: bool, in_redis: bool, heard_elsewhere: bool
) -> None:
    """Each switch controls only its own part; local handlers and get_event() work in every case."""
    heard, local = [], []
    bus.subscribe("*", lambda event: heard.append(event.id))
    other = other_process(bus, enable_persistence=persistence, enable_pubsub=pubsub)
    other.subscribe("*", lambda event: local.append(event.id))
    assert not other.publish("a.b", id="x").duplicate
    assert other.publish("a.b", id="x").duplicate
    bus.client.publish(bus.settings.channel_prefix + "a.b", b'{"id":"end","type":"a.b"}')
    eventually(lambda: "end" in heard, "the end mark is received")
    keys = Keys(bus.settings.channel_prefix)
    assert bool(bus.client.exists(keys.event("x"))) is in_redis
    assert bool(bus.client.exists(keys.journal)) is in_redis
    assert ("x" in heard) is heard_elsewhere
    assert local[0] == "x"
    assert other.get_event("x").id == "x"
    other.close()


def test_get_event_by_id(bus: EventBus, prefix: str) -> None:
    """get_event() finds an event in Redis by id, returns None for an unknown id, and raises for an invalid one."""
    event = bus.publish("a.b", {"x": [1, None]}).event
    assert other_process(bus).get_event(event.id) == event
    assert bus.get_event("unknown") is None
    bus.client.set(f"{prefix}event:corrupt", b'{"id": "corrupt"')
    bus.client.hset(f"{prefix}event:hash", "a", "b")
    for event_id, reason in [("corrupt", "json"), ("hash", "wrong_key_type")]:
        with pytest.raises(InvalidEvent) as caught:
            bus.get_event(event_id)
        assert caught.value.reason == reason


def test_source_is_tracked_and_never_the_one_nobody_hears(bus: EventBus) -> None:
    """Events have the source of their publisher unless they name one; the marker of the TypeScript bus names none."""
    assert bus.publish("a.b").event.source == "tests"
    assert bus.publish("a.b", source="mine").event.source == "mine"
    assert bus.publish("a.b", source="RedisEventBus").event.source == "tests"


def test_too_long_chains_and_too_large_events_are_refused(bus: EventBus, prefix: str) -> None:
    """An event beyond max_hops or max_event_bytes raises an error before anything is written."""
    event = Event(type="a.b")
    for _ in range(17):
        event = event.child("a.b")
    with pytest.raises(HopLimitExceeded, match="hop 17"):
        bus.publish(event)
    with pytest.raises(InvalidEvent) as caught:
        bus.publish("a.b", "x" * 1024 * 1024)
    assert (caught.value.reason, caught.value.field) == ("size", "payload")
    assert not list(bus.client.scan_iter(match=f"*{prefix}*"))


def test_unreachable_redis_is_an_error_not_silence(prefix: str) -> None:
    """Without Redis, all calls raise BusUnavailable with the address and without the password."""
    bus = EventBus(redis_url="redis://:hunter2@127.0.0.1:1/0", channel_prefix=prefix, publish_timeout_s=0.5)
    for call in (bus.connect, lambda: bus.publish("a.b"), lambda: bus.get_event("x")):
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1") as caught:
            call()
        assert "hunter2" not in repr(caught.value) + str(caught.value) + repr(caught.value.__cause__)


def test_wrong_password_is_named_at_once(own_server: RedisServer, prefix: str) -> None:
    """A refused password is not retried, and the error explains what to check."""
    with Redis.from_url(own_server.url) as admin:
        admin.config_set("requirepass", "right")
    bus = EventBus(redis_url=own_server.url.replace("//", "//:wrong@"), channel_prefix=prefix)
    with pytest.raises(BusUnavailable, match="password"):
        bus.publish("a.b")


def test_full_memory_leaves_no_trace(own_server: RedisServer, prefix: str) -> None:
    """If the server is out of memory, publishing raises an error and writes neither key, journal entry nor mark."""
    with EventBus(redis_url=own_server.url, channel_prefix=prefix, publish_timeout_s=0.5) as bus:
        bus.publish("a.b", id="before")
        bus.client.config_set("maxmemory", 1)
        with pytest.raises(BusUnavailable, match="maxmemory"):
            bus.publish("a.b", id="refused")
        bus.client.config_set("maxmemory", 0)
        keys = Keys(prefix)
        assert not bus.client.exists(keys.event("refused"), keys.seen("refused"))
        assert bus.client.xlen(keys.journal) == 1
        assert not bus.publish("a.b", id="refused").duplicate


def test_local_copy_serves_while_redis_is_away(own_server: RedisServer, prefix: str) -> None:
    """While Redis is down, get_event() returns events from the memory of this process and raises for others."""
    with EventBus(redis_url=own_server.url, channel_prefix=prefix, publish_timeout_s=0.5) as bus:
        event = bus.publish("a.b", "mine").event
        own_server.kill()
        assert bus.get_event(event.id) == event
        with pytest.raises(BusUnavailable):
            bus.get_event("unknown")


def test_listener_survives_a_restart_of_redis(own_server: RedisServer, prefix: str) -> None:
    """After a kill -9 and restart of Redis, a local handler receives events of other processes again."""
    heard: list[str] = []
    with EventBus(redis_url=own_server.url, channel_prefix=prefix) as bus:
        bus.subscribe("*", lambda event: heard.append(event.id))
        own_server.kill()
        own_server.start()
        other = other_process(bus)

        def heard_again() -> bool:
            other.publish("a.b")
            return bool(heard)

        eventually(heard_again, "an event is received after the restart")


def test_close_leaves_no_thread(bus: EventBus) -> None:
    """After close() the listener thread has ended; a second close() is harmless."""
    bus.subscribe("*", lambda event: None)
    assert any(thread.name == "bridge-bus" for thread in threading.enumerate())
    bus.close()
    bus.close()
    with pytest.raises(BridgeError, match="closed"):
        bus.subscribe("*", lambda event: None)
    assert not any(thread.name == "bridge-bus" for thread in threading.enumerate())


def test_connections_are_bounded(settings: BridgeSettings, client: Redis) -> None:
    """Threads share a limited number of connections instead of failing, and every connection has the client name."""
    changes = {"redis_url": SecretStr(f"{settings.url}?max_connections=2"), "group": settings.channel_prefix[5:-1]}
    with EventBus(settings.model_copy(update=changes)) as bus, ThreadPoolExecutor(16) as threads:
        publications = list(threads.map(lambda number: bus.publish("a.b", number), range(400)))
        ours = [one for one in client.client_list() if one["name"] == bus.settings.client_name]
    assert len({publication.event.id for publication in publications}) == 400
    assert 1 <= len(ours) <= 2

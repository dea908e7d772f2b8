"""The causality index: publishing or appending an event adds it to the index of its cause in the same step."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.events.encoded import EncodedEvent
from bridge.redis.client import connect
from bridge.storage.journal import MAX_INDEXED
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.scrape import Listen
from tests.support.waiting import eventually


@pytest.fixture
def each_settings(each_server: RedisServer, prefix: str) -> BridgeSettings:
    return BridgeSettings.load(redis_url=each_server.url, channel_prefix=prefix, group="tests")


def caused(client: Redis, settings: BridgeSettings, cause: str) -> list[str]:
    return [member.decode() for member in client.zrange(Keys(settings.channel_prefix).consequences(cause), 0, -1)]


def records(*events: Event) -> list[EncodedEvent]:
    return [EncodedEvent.of(event, event.encode()) for event in events]


def test_a_publication_notes_its_cause_in_the_same_step(bus: EventBus, listen: Listen, prefix: str) -> None:
    """A publication is one command, with or without a cause; its script writes the index."""
    first = bus.publish("a.first").event
    bus.publish(first.child("a.warm", id="warm"))  # loads the script

    sent, inside = listen(lambda: bus.publish(first.child("a.next", id="next")))
    key = Keys(prefix).consequences(first.id)
    assert [command.split()[0] for command in sent] == ["EVALSHA"]
    assert [command.split()[0] for command in inside if key in command] == ["ZCARD", "ZADD", "PEXPIRE"]

    sent, inside = listen(lambda: bus.publish("a.first"))
    assert [command.split()[0] for command in sent] == ["EVALSHA"]
    assert not [command for command in inside if "caused:" in command]


def test_many_publications_note_their_causes_in_the_same_step(bus: EventBus, client: Redis, listen: Listen) -> None:
    """publish_many() sends one script per event and nothing else, and every event is in the index of its cause."""
    first, second = (bus.publish("a.first").event for _ in range(2))
    bus.publish_many([first.child("a.warm", id=f"warm{number}") for number in range(2)])
    events = [(first, second)[number % 2].child("a.next", number, id=f"n{number}") for number in range(100)]
    sent, _ = listen(lambda: bus.publish_many(events))
    assert [command.split()[0] for command in sent] == ["EVALSHA"] * 100
    assert set(caused(client, bus.settings, second.id)) == {f"n{number}" for number in range(1, 100, 2)}
    assert set(caused(client, bus.settings, first.id)) == {"warm0", "warm1", *(f"n{n}" for n in range(0, 100, 2))}


def test_foreign_events_note_their_causes_as_they_are_appended(
    client: Redis, settings: BridgeSettings, listen: Listen
) -> None:
    """One script appends all received events together with their causes."""
    journal = Storage(client, settings).journal
    journal.append(records(Event(type="a.warm")))
    events = [Event(type="a.x", id=f"n{number}", metadata={"causationId": f"c{number % 3}"}) for number in range(60)]
    events.append(Event(type="a.x", id="first", correlation_id="chain"))
    events.append(Event(type="a.x", id="alone"))
    sent, _ = listen(lambda: journal.append(records(*events)))
    assert [command.split()[0] for command in sent] == ["EVALSHA"]
    for number in range(3):
        assert set(caused(client, settings, f"c{number}")) == {f"n{n}" for n in range(number, 60, 3)}
    assert caused(client, settings, "chain") == ["first"]


def test_heard_and_caught_up_events_are_indexed(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings
) -> None:
    """A subscriber indexes the causes of events that it receives, and of events that only their keys hold."""
    register_handlers("t.plain")
    keys = Keys(settings.channel_prefix)
    silent = Event(type="a.x", id="silent", metadata={"causationId": "root"})
    client.set(keys.event(silent.id), silent.encode(), ex=60)
    start_subscriber()
    heard = Event(type="a.x", id="heard", metadata={"causationId": "root"})
    client.publish(keys.channel(heard.type), heard.encode())
    eventually(lambda: set(caused(client, settings, "root")) == {"silent", "heard"}, "both events are indexed")


@pytest.mark.parametrize("way", ["publish", "append"])
def test_the_index_lives_as_long_as_its_last_event(each_settings: BridgeSettings, way: str) -> None:
    """Each new event renews the TTL of the index to the lifetime of an event; scores are times of journal entries."""
    settings = each_settings.model_copy(update={"event_ttl_s": 1000})
    key = Keys(settings.channel_prefix).consequences("root")
    with EventBus(settings) as bus:

        def add(event_id: str) -> None:
            event = Event(type="a.x", id=event_id, metadata={"causationId": "root"})
            if way == "publish":
                bus.publish(event)
            else:
                Storage(bus.client, settings).journal.append(records(event))

        add("one")
        assert 990_000 < bus.client.pttl(key) <= 1_000_000
        bus.client.pexpire(key, 5000)
        add("two")
        assert 990_000 < bus.client.pttl(key) <= 1_000_000
        entries: Any = bus.client.xrange(Keys(settings.channel_prefix).journal)
        scores = dict(bus.client.zrange(key, 0, -1, withscores=True))
        assert scores == {fields[b"id"]: int(entry.split(b"-")[0]) for entry, fields in entries}


def test_a_chain_is_found_by_its_correlation_id(bus: EventBus, client: Redis) -> None:
    """The first events of a chain are indexed under its correlation id, later ones under their cause."""
    first = bus.publish("a.first", id="first", correlation_id="chain").event
    other = bus.publish("a.first", id="other", correlation_id="chain").event
    bus.publish(first.child("a.next", id="next"))
    bus.publish("a.first", id="self", correlation_id="self")
    assert set(caused(client, bus.settings, "chain")) == {first.id, other.id}
    assert caused(client, bus.settings, "first") == ["next"]
    assert caused(client, bus.settings, "self") == [], "an event does not follow from itself"


@pytest.mark.parametrize("cause", ["x" * 201, "träume", "", 7, ["a"], {"a": 1}], ids=repr)
def test_odd_causes_are_not_indexed(bus: EventBus, client: Redis, prefix: str, cause: Any) -> None:
    """A cause that is too long, not ASCII or not text is not indexed, and its event is published as usual."""
    event = Event(type="a.x", id="ours", metadata={"causationId": cause})
    assert not bus.publish(event).duplicate
    (outcome,) = Storage(client, bus.settings).journal.append(records(event.model_copy(update={"id": "foreign"})))
    assert outcome == "appended"
    assert list(client.scan_iter(match=f"*{prefix}*caused:*")) == []


def test_something_else_at_the_key_costs_no_event_and_no_error(each_settings: BridgeSettings, prefix: str) -> None:
    """If the key of the index has another type, events are still stored, appended and broadcast without an error."""
    keys = Keys(prefix)
    with EventBus(each_settings) as bus, bus.client.pubsub() as listener:
        listener.psubscribe(keys.all_channels)
        bus.client.set(keys.consequences("root"), "in the way")
        parts = {"type": "a.x", "metadata": {"causationId": "root"}}
        bus.publish(Event(id="one", **parts))
        bus.publish_many([Event(id="two", **parts), Event(id="three", **parts)])
        Storage(bus.client, each_settings).journal.append(records(Event(id="four", **parts), Event(id="five", **parts)))
        ids = [fields[b"id"] for _, fields in bus.client.xrange(keys.journal)]
        assert ids == [b"one", b"two", b"three", b"four", b"five"]
        assert bus.client.exists(keys.event("one"), keys.event("two"), keys.event("three")) == 3
        heard = eventually(lambda: sum(1 for _ in iter(lambda: listener.get_message(timeout=0.2), None)), "broadcasts")
        assert heard == 1 + 3  # the subscription and the publications
        assert bus.client.get(keys.consequences("root")) == b"in the way"


def test_a_repeated_publication_adds_nothing(bus: EventBus, client: Redis) -> None:
    """Neither a repeated event nor another event under the same id changes the index."""
    event = Event(type="a.x", id="one", metadata={"causationId": "root"})
    bus.publish(event)
    client.delete(Keys(bus.settings.channel_prefix).consequences("root"))
    assert bus.publish(event).duplicate
    assert bus.publish(event.model_copy(update={"payload": "other"})).conflict
    assert Storage(client, bus.settings).journal.append(records(event)) == ["repeated"]
    assert caused(client, bus.settings, "root") == []


def test_a_lost_reply_adds_the_event_once(proxy: Any, client: Redis, settings: BridgeSettings) -> None:
    """A publication that is retried after a lost reply is in the index once."""
    with EventBus(settings.model_copy(update={"redis_url": None, "redis_port": proxy.port})) as bus:
        first = bus.publish("a.first").event
        bus.publish(first.child("a.warm", id="warm"))
        proxy.drop_reply(b"caused:")
        assert not bus.publish(first.child("a.next", id="next")).duplicate
    assert proxy.done["reply dropped"] == 1
    assert set(caused(client, settings, first.id)) == {"warm", "next"}


def test_a_journal_that_is_made_anew_keeps_the_index(client: Redis, settings: BridgeSettings) -> None:
    """Events that are restored to a deleted journal are in the index, under their new times."""
    journal, keys = Storage(client, settings).journal, Keys(settings.channel_prefix)
    event = Event(type="a.x", id="one", metadata={"causationId": "root"})
    journal.append(records(event))
    client.delete(keys.journal)
    client.zadd(keys.consequences("root"), {"one": 1})
    assert journal.append(records(event), refill=True) == ["appended"]
    assert client.zscore(keys.consequences("root"), "one") > 1


def test_replays_are_indexed_by_event_and_group(queues: Queues, client: Redis, settings: BridgeSettings) -> None:
    """A replay adds its name to the index of each event that it appends, for as long as its progress is kept."""
    from tests.support.replays import FAST, Replays, last

    with connect(settings) as own, EventBus(settings) as bus:
        bus.publish_many([Event(type="a.x", id=f"n{number}") for number in range(3)])
        last(Replays(own, settings).journal("early").run(FAST))
        last(Replays(own, settings).journal("late", ids=frozenset({"n1"})).run(FAST))
    keys = Keys(settings.channel_prefix)
    assert client.zrange(keys.replays("tests", "n1"), 0, -1) == [b"early", b"late"]
    assert client.zrange(keys.replays("tests", "n2"), 0, -1) == [b"early"]
    assert 0 < settings.dedup_ttl_ms - client.pttl(keys.replays("tests", "n1")) < 60_000


def test_the_index_forgets_what_is_older_than_events(each_server: RedisServer, prefix: str) -> None:
    """An id that is used all the time, such as that of a tenant, indexes the events of one event_ttl_s."""
    settings = BridgeSettings.load(redis_url=each_server.url, channel_prefix=prefix, event_ttl_s=60)
    with EventBus(settings) as bus:
        key = Keys(prefix).consequences("tenant")
        old_ms = (bus.client.time()[0] - 61) * 1000
        bus.client.zadd(key, {f"old{number}": old_ms for number in range(100)})
        bus.publish(Event(type="a.b", id="new", correlation_id="tenant"))
        Storage(bus.client, settings).journal.append(records(Event(type="a.b", id="other", correlation_id="tenant")))
        assert caused(bus.client, settings, "tenant") == ["new", "other"]


def test_the_index_has_room_for_a_limited_number(each_settings: BridgeSettings) -> None:
    """Events beyond the limit are not indexed, until others are old; each of them is published nevertheless."""
    with EventBus(each_settings) as bus:
        key = Keys(each_settings.channel_prefix).consequences("tenant")
        events = [Event(type="a.b", id=f"n{number}", correlation_id="tenant") for number in range(MAX_INDEXED + 20)]
        bus.publish_many(events)
        assert bus.client.xlen(Keys(each_settings.channel_prefix).journal) == len(events)
        assert sorted(caused(bus.client, each_settings, "tenant")) == sorted(one.id for one in events[:MAX_INDEXED])
        bus.client.zadd(key, {f"n{number}": 1 for number in range(10)})
        bus.publish(Event(type="a.b", id="last", correlation_id="tenant"))
        assert bus.client.zcard(key) == MAX_INDEXED - 10 + 1


def test_an_index_that_kept_everything_starts_again(each_settings: BridgeSettings) -> None:
    """The index of an older version may hold millions of events; it is replaced in one step that does not block."""
    with EventBus(each_settings) as bus:
        key = Keys(each_settings.channel_prefix).consequences("tenant")
        bus.client.zadd(key, {f"n{number}": 1 for number in range(MAX_INDEXED + 1)})
        bus.publish(Event(type="a.b", id="new", correlation_id="tenant"))
        assert caused(bus.client, each_settings, "tenant") == ["new"]

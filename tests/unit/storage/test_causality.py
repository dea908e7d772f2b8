"""The causality index: what an event caused is noted as its consequence is published, in the same step."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.events.encoded import EncodedEvent
from bridge.redis.client import connect
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
    """One command goes to Redis, with or without a cause; the index is written inside its script."""
    first = bus.publish("a.first").event
    bus.publish(first.child("a.warm", id="warm"))  # the script is known to the server from here on

    sent, inside = listen(lambda: bus.publish(first.child("a.next", id="next")))
    key = Keys(prefix).consequences(first.id)
    assert [command.split()[0] for command in sent] == ["EVALSHA"]
    assert [command.split()[0] for command in inside if key in command] == ["ZADD", "PEXPIRE"]

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
    """Events that are heard are appended, with their causes, by one script for all of them."""
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
    """A subscriber notes the causes of what it hears, and of what only an event key remembers."""
    register_handlers("t.plain")
    keys = Keys(settings.channel_prefix)
    silent = Event(type="a.x", id="silent", metadata={"causationId": "root"})
    client.set(keys.event(silent.id), silent.encode(), ex=60)
    start_subscriber()
    heard = Event(type="a.x", id="heard", metadata={"causationId": "root"})
    client.publish(keys.channel(heard.type), heard.encode())
    eventually(lambda: set(caused(client, settings, "root")) == {"silent", "heard"}, "both are indexed")


@pytest.mark.parametrize("way", ["publish", "append"])
def test_the_index_lives_as_long_as_its_last_event(each_settings: BridgeSettings, way: str) -> None:
    """Its lifetime is that of an event, begun anew by each one; its scores are the times of the journal."""
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
    """The first events of a chain are indexed under its correlation id, and what follows under its cause."""
    first = bus.publish("a.first", id="first", correlation_id="chain").event
    other = bus.publish("a.first", id="other", correlation_id="chain").event
    bus.publish(first.child("a.next", id="next"))
    bus.publish("a.first", id="self", correlation_id="self")
    assert set(caused(client, bus.settings, "chain")) == {first.id, other.id}
    assert caused(client, bus.settings, "first") == ["next"]
    assert caused(client, bus.settings, "self") == [], "an event does not follow from itself"


@pytest.mark.parametrize("cause", ["x" * 201, "träume", "", 7, ["a"], {"a": 1}], ids=repr)
def test_odd_causes_are_not_indexed(bus: EventBus, client: Redis, prefix: str, cause: Any) -> None:
    """Other programs choose what they write there: too long, not ASCII or no text costs nothing, and names no key."""
    event = Event(type="a.x", id="ours", metadata={"causationId": cause})
    assert not bus.publish(event).duplicate
    (outcome,) = Storage(client, bus.settings).journal.append(records(event.model_copy(update={"id": "foreign"})))
    assert outcome == "appended"
    assert list(client.scan_iter(match=f"*{prefix}*caused:*")) == []


def test_something_else_at_the_key_costs_no_event_and_no_error(each_settings: BridgeSettings, prefix: str) -> None:
    """Where the index should be is a string: events are published, appended, broadcast and kept all the same."""
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
        assert heard == 1 + 3  # the subscription, and what was published
        assert bus.client.get(keys.consequences("root")) == b"in the way"


def test_a_repeated_publication_adds_nothing(bus: EventBus, client: Redis) -> None:
    """Neither the same event again, from us or from others, nor another one under its id changes the index."""
    event = Event(type="a.x", id="one", metadata={"causationId": "root"})
    bus.publish(event)
    client.delete(Keys(bus.settings.channel_prefix).consequences("root"))
    assert bus.publish(event).duplicate
    assert bus.publish(event.model_copy(update={"payload": "other"})).conflict
    assert Storage(client, bus.settings).journal.append(records(event)) == ["repeated"]
    assert caused(client, bus.settings, "root") == []


def test_a_lost_reply_adds_the_event_once(proxy: Any, client: Redis, settings: BridgeSettings) -> None:
    """A publication that is tried again after its reply was lost is in the index, once."""
    with EventBus(settings.model_copy(update={"redis_url": None, "redis_port": proxy.port})) as bus:
        first = bus.publish("a.first").event
        bus.publish(first.child("a.warm", id="warm"))
        proxy.drop_reply(b"caused:")
        assert not bus.publish(first.child("a.next", id="next")).duplicate
    assert proxy.done["reply dropped"] == 1
    assert set(caused(client, settings, first.id)) == {"warm", "next"}


def test_a_journal_that_is_made_anew_keeps_the_index(client: Redis, settings: BridgeSettings) -> None:
    """Events that are brought back into a deleted journal are in the index as before, under their new times."""
    journal, keys = Storage(client, settings).journal, Keys(settings.channel_prefix)
    event = Event(type="a.x", id="one", metadata={"causationId": "root"})
    journal.append(records(event))
    client.delete(keys.journal)
    client.zadd(keys.consequences("root"), {"one": 1})
    assert journal.append(records(event), refill=True) == ["appended"]
    assert client.zscore(keys.consequences("root"), "one") > 1


def test_replays_are_indexed_by_event_and_group(queues: Queues, client: Redis, settings: BridgeSettings) -> None:
    """A replay notes its name under each event that it appends, for as long as its progress is kept."""
    from tests.support.replays import FAST, Replays, last

    with connect(settings) as own, EventBus(settings) as bus:
        bus.publish_many([Event(type="a.x", id=f"n{number}") for number in range(3)])
        last(Replays(own, settings).journal("early").run(FAST))
        last(Replays(own, settings).journal("late", ids=frozenset({"n1"})).run(FAST))
    keys = Keys(settings.channel_prefix)
    assert client.zrange(keys.replays("tests", "n1"), 0, -1) == [b"early", b"late"]
    assert client.zrange(keys.replays("tests", "n2"), 0, -1) == [b"early"]
    assert 0 < settings.dedup_ttl_ms - client.pttl(keys.replays("tests", "n1")) < 60_000

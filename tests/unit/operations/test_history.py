"""Reading the journal for people: newest first, in pages, and without side effects."""

from __future__ import annotations

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, InvalidEvent
from bridge.operations.history import Header, History
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.replays import FAST, Replays, last
from tests.support.scrape import RoundTrips


@pytest.fixture
def history(client: Redis, settings: BridgeSettings) -> History:
    return History(Storage(client, settings))


def ids(headers: list[Header]) -> list[str]:
    return [header.event_id for header in headers]


def test_the_newest_come_first(bus: EventBus, client: Redis, history: History, round_trips: RoundTrips) -> None:
    """The newest entries come first, from the end or from before an entry, and replayed ones are marked."""
    assert history.newest(10) == []
    bus.publish_many([Event(type="a.b", id=f"n{number}", payload="x" * 100) for number in range(130)])
    all_ids = [f"n{number}" for number in range(129, -1, -1)]
    assert ids(history.newest(1000)) == all_ids
    first = history.newest(120)
    assert ids(first) == all_ids[:120]
    assert ids(history.newest(1000, before=f"({first[-1].entry_id}")) == all_ids[120:]
    assert ids(history.newest(1, before=first[-1].entry_id)) == all_ids[119:120]
    entry = first[0].entry_id
    assert first[0] == Header(entry, "n129", "a.b", int(entry.split("-", maxsplit=1)[0]), replay=False)
    assert round_trips(lambda: history.newest(120)) == 3
    last(Replays(client, bus.settings).journal(ids=frozenset({"n7"})).run(FAST))
    assert [(one.event_id, one.replay) for one in history.newest(2)] == [("n7", True), ("n129", False)]


def test_entries_that_others_wrote(client: Redis, settings: BridgeSettings, history: History) -> None:
    """Invalid entries are shown as far as they can be read."""
    client.xadd(Keys(settings.channel_prefix).journal, {"what": "ever"})
    client.xadd(Keys(settings.channel_prefix).journal, {b"id": b"\xff", b"type": b"t"})
    assert [(one.event_id, one.event_type) for one in history.newest(5)] == [("\ufffd", "t"), ("", "")]


def test_an_event_from_its_key_or_from_the_journal(
    bus: EventBus, client: Redis, settings: BridgeSettings, history: History
) -> None:
    """An event is read from its key or from the journal, but not from an entry id that a new journal has reused."""
    keys = Keys(settings.channel_prefix)
    published = bus.publish("a.b", {"n": 1}, id="e").event
    assert history.event("e") == published
    client.delete(keys.event("e"))
    assert history.event("e") == published
    ((entry, fields),) = client.xrange(keys.journal)
    client.delete(keys.journal)
    assert history.event("e") is None
    client.xadd(keys.journal, fields | {b"id": b"other"}, id=entry)
    assert history.event("e") is None
    client.set(keys.event("e"), "{")
    with pytest.raises(InvalidEvent):
        history.event("e")
    assert history.event("unknown") is None


def test_looking_takes_nothing(bus: EventBus, client: Redis, settings: BridgeSettings, history: History) -> None:
    """Reading history changes neither groups nor consumers."""
    journal = Keys(settings.channel_prefix).journal
    bus.publish("a.b", id="e")
    client.xgroup_create(journal, "tests", id="0")
    before = client.xinfo_groups(journal)
    history.newest(10)
    history.event("e")
    (entry_id,) = history.entry_ids(["e", "unknown"]).values()
    assert history.undispatched([entry_id]) == {entry_id}
    assert client.xinfo_groups(journal) == before

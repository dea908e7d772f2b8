"""Replays on a real Redis: which events are appended, and that an interruption neither skips nor repeats any."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bridge import BridgeError, BridgeSettings, Event, EventBus
from bridge.bus.admission import Admission
from bridge.handlers.handler import task_id_for
from bridge.operations.replay import Replay
from bridge.operations.replay_sources import JournalSource
from bridge.storage.entries import Entry, EntryFilter
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually


def publish(bus: EventBus, count: int, event_type: str = "dream.created", first: int = 0) -> None:
    for number in range(first, first + count):
        bus.publish(event_type, number, id=f"n{number}", metadata={"of": "old"})


def test_what_a_replay_appends(replays: Replays, bus: EventBus, client: Redis) -> None:
    """A replay appends the event with its id, marked, for one group and handler, without broadcast and event key."""
    publish(bus, 1)
    client.delete(replays.keys.event("n0"), replays.keys.seen("n0"))
    with client.pubsub() as listener:
        listener.psubscribe(replays.keys.all_channels)
        eventually(lambda: listener.get_message(timeout=1), "the listener is subscribed")
        progress = last(replays.journal(handler="t.exact").run(FAST))
        assert listener.get_message(timeout=0.1) is None
    assert (progress.replayed, progress.skipped, progress.finished) == (1, 0, True)
    (entry,) = replays.replayed()
    event = Event.decode(entry[b"event"], max_bytes=10_000)
    assert {name: entry[name] for name in (b"id", b"type", b"group", b"handler")} == {
        b"id": b"n0",
        b"type": b"dream.created",
        b"group": b"tests",
        b"handler": b"t.exact",
    }
    assert (event.id, event.payload) == ("n0", 0)
    assert event.metadata == {
        "of": "old",
        "replay": {"name": "r", "at": progress.at_ms, "group": "tests", "handler": "t.exact"},
    }
    assert abs(progress.at_ms - time.time() * 1000) < 60_000
    assert not client.exists(replays.keys.event("n0"), replays.keys.seen("n0"))


def test_a_replay_of_the_journal_does_not_feed_on_itself(replays: Replays, bus: EventBus) -> None:
    """A replay appends neither entries of replays nor events that are published after it started."""
    publish(bus, 25)
    steps = replays.journal("one").run(50)  # steps of five
    next(steps)
    publish(bus, 5, first=25)
    assert last(steps).replayed == 25
    assert last(replays.journal("two").run(FAST)).replayed == 30
    assert Counter(replays.ids()) == Counter({f"n{number}": 2 if number < 25 else 1 for number in range(30)})


def test_selection_from_the_journal(replays: Replays, bus: EventBus, client: Redis) -> None:
    """Entries are selected by time, type, id and by the types of a handler; others are not replayed."""
    publish(bus, 3)
    publish(bus, 2, "billing.paid", first=3)
    times = [int(entry.partition(b"-")[0]) for entry, _ in client.xrange(replays.keys.journal)]
    late = [f"n{number}" for number, at_ms in enumerate(times) if at_ms >= times[3]]
    expected = {
        "type": (replays.journal("type", event_type="billing.*"), ["n3", "n4"]),
        "ids": (replays.journal("ids", ids=frozenset({"n1", "n4", "n9"})), ["n1", "n4"]),
        "handler": (replays.journal("handler", "t.plain", lambda name: name == "billing.paid"), ["n3", "n4"]),
        "since": (replays.journal("since", since_ms=times[3]), late),
        "until": (replays.journal("until", until_ms=times[3]), [f"n{number}" for number in range(5 - len(late))]),
    }
    for name, (replay, ids) in expected.items():
        if not ids:
            continue  # all within one millisecond
        assert [found.event_id for found in replay.remaining()] == ids
        before = len(replays.ids())
        assert last(replay.run(FAST)).replayed == len(ids)
        assert replays.ids()[before:] == ids, name


def test_a_dry_run_writes_nothing(replays: Replays, bus: EventBus, client: Redis) -> None:
    """A dry run lists what a replay, or the rest of an interrupted one, would append, and changes nothing in Redis."""
    publish(bus, 20)
    for _ in range(2):
        assert len(list(replays.journal().remaining())) == 20
    assert replays.journal().progress() is None
    assert not replays.ids()
    next(replays.journal().run(50))
    assert [found.event_id for found in replays.journal().remaining()] == [f"n{number}" for number in range(5, 20)]


def test_an_interrupted_replay_goes_on(own_server: RedisServer, prefix: str) -> None:
    """A replay that is interrupted after each step, with the scripts flushed, skips and repeats nothing."""
    with EventBus(redis_url=own_server.url, channel_prefix=prefix, group="tests") as bus:
        bench = Replays(bus.client, bus.settings)
        publish(bus, 103)
        for _ in range(11):
            bus.client.script_flush()
            progress = next(bench.journal().run(100))  # steps of ten
            left_ms = bus.client.pttl(bench.keys.replay("tests", "r"))
            assert bus.settings.dedup_ttl_ms - 60_000 < left_ms <= bus.settings.dedup_ttl_ms
            bus.client.pexpire(bench.keys.replay("tests", "r"), 60_000)  # as after a long interruption
        assert progress.finished
        assert bench.ids() == [f"n{number}" for number in range(103)]
        assert (progress.replayed, bench.journal().progress()) == (103, progress)


def test_a_finished_replay_does_nothing(replays: Replays, bus: EventBus) -> None:
    """Running a finished replay again appends nothing, and its progress stays available."""
    publish(bus, 3)
    done = last(replays.journal().run(FAST))
    publish(bus, 3, first=3)
    assert list(replays.journal().run(FAST)) == []
    assert list(replays.journal().remaining()) == []
    assert replays.journal().progress() == done
    assert len(replays.ids()) == 3


def test_a_lost_reply_does_not_repeat_a_step(replays: Replays, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose reply is lost is sent again and appended once."""
    publish(bus, 30)
    replay, lost = replays.journal(), 0
    script = replay._replay

    def once_without_reply(**arguments: Any) -> Any:
        nonlocal lost
        reply = script(**arguments)
        if lost % 2 == 0:
            lost += 1
            raise RedisConnectionError("the reply is lost")
        lost += 1
        return reply

    monkeypatch.setattr(replay, "_replay", once_without_reply)
    assert last(replay.run(100)).replayed == 30
    assert lost == 8  # four steps, each twice
    assert replays.ids() == [f"n{number}" for number in range(30)]


def test_two_processes_with_one_name_repeat_nothing(replays: Replays, bus: EventBus) -> None:
    """If two processes run the same replay, one gets an error; together they append each event once."""
    publish(bus, 30)
    first, second = replays.journal().run(100), replays.journal().run(50)
    next(first)
    next(second)
    with pytest.raises(BridgeError, match="another process is running replay 'r'"):
        next(first)
    assert last(second).replayed == 30
    assert replays.ids() == [f"n{number}" for number in range(30)]


def test_the_rate_is_held(replays: Replays, bus: EventBus) -> None:
    """30 events at 60 per second take half a second, minus the first step."""
    publish(bus, 30)
    began = time.monotonic()
    assert last(replays.journal().run(60)).replayed == 30
    assert 0.4 <= time.monotonic() - began < 5


def test_misuse_is_named(replays: Replays, bus: EventBus) -> None:
    """Other filters under the same name, an invalid name and no matching events are errors, and nothing is written."""
    with pytest.raises(BridgeError, match="nothing to replay matches"):
        next(replays.journal().run(FAST))
    publish(bus, 3)
    with pytest.raises(BridgeError, match="nothing to replay matches"):
        next(replays.journal(event_type="no.such").run(FAST))
    assert replays.journal().progress() is None
    last(replays.journal(event_type="dream.*").run(FAST))
    with pytest.raises(BridgeError, match="choose another name"):
        next(replays.journal(event_type="dream.?*").run(FAST))
    with pytest.raises(BridgeError, match="not a valid name for a replay"):
        replays.journal("a b")
    assert len(replays.ids()) == 3


def test_replayed_events_at_the_size_limit(replays: Replays, bus: EventBus) -> None:
    """An event at the limit is replayed and read although its mark makes it larger; one of over twice that is not."""
    event = Event(type="dream.created", id="large", payload="x" * 1000)
    bus.publish(event)
    size = len(event.encode())
    for limit, replayed in ((size, 1), (size // 3, 0)):
        limited = replays.settings.model_copy(update={"max_event_bytes": limit})
        storage = Storage(replays.client, limited)
        progress = last(Replay(storage, JournalSource(storage, EntryFilter()), f"r{limit}", {}).run(FAST))
        assert (progress.replayed, progress.skipped) == (replayed, 1 - replayed)
    [appended] = replays.replayed()
    assert len(appended[b"event"]) > size
    admission = Admission(replays.settings.model_copy(update={"max_event_bytes": size}))
    assert admission.read(Entry.of(b"1-0", appended)).id == "large"


# With a subscriber


def test_a_replay_reaches_one_group_and_handler(
    replays: Replays,
    bus: EventBus,
    register_handlers,
    start_subscriber: StartSubscriber,
    queues: Queues,
    settings: BridgeSettings,
) -> None:
    """A replay reaches neither other handlers of the event nor other groups on the same bus."""
    register_handlers("t.exact", "t.all")
    start_subscriber()
    other = start_subscriber("other", group="others")
    publish(bus, 2)
    eventually(lambda: queues.length() == 8, "messages of two handlers in two groups are queued")
    first = {message["headers"]["id"] for message in queues.messages()}
    last(replays.journal("again", "t.exact", lambda name: name == "dream.created").run(FAST))
    eventually(lambda: queues.length() == 10, "the replayed messages are queued")
    publish(bus, 1, first=2)
    eventually(lambda: queues.length() == 14, "later messages are queued")
    eventually(lambda: other.info()["dispatched"] == 6, "the other group has dispatched its events")
    later = [message["headers"] for message in queues.messages() if message["headers"]["id"] not in first]
    again = [header for header in later if "n2" not in header["argsrepr"]]
    assert {header["id"] for header in again} == {
        task_id_for("tests", f"n{number}", "t.exact", "again") for number in range(2)
    }
    assert {header["task"] for header in again} == {"t.exact"}


def test_what_expires_under_a_replay_is_said(
    replays: Replays, bus: EventBus, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """If the journal is trimmed past an interrupted replay, it logs a warning and replays the remaining events."""
    publish(bus, 30)
    replay = replays.journal()
    next(replay.run(rate=100))  # ten of them
    ids = [entry_id for entry_id, _ in client.xrange(replays.keys.journal)]
    client.xtrim(replays.keys.journal, minid=ids[20].decode(), approximate=False)
    progress = last(replays.journal().run(FAST))
    assert progress.finished
    assert len(replays.ids()) == progress.replayed == 20
    assert "the journal was trimmed past entry" in caplog.text

"""The data of the pages, read without Flower: rows, searches and limits on a real Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, BusUnavailable, Event, EventBus
from bridge.flower.data import BY_STATE, EventData, Page
from bridge.flower.tree import Line, find, lines
from bridge.operations.task_states import EventNode, TaskNode
from bridge.operations.trace import Trace
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from tests.support.apps import StartSubscriber
from tests.support.proxy import Proxy
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually


@pytest.fixture
def make_data(app: Celery, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EventData]:
    app.conf.update(bridge_channel_prefix=settings.channel_prefix, bridge_group="tests")
    monkeypatch.setenv("BRIDGE_REDIS_URL", settings.url)
    return partial(EventData, app)


@pytest.fixture
def data(make_data: Callable[..., EventData]) -> EventData:
    return make_data()


def publish(settings: BridgeSettings, *events: Event) -> None:
    with EventBus(settings=settings) as bus:
        bus.publish_many(events)


def ids(data: EventData, search: str = "", state: str = "", start: int = 0, length: int = 100) -> list[str]:
    return [row["id"] for row in data.events(search, state, start, length).rows]


def numbered(count: int, first: int = 0) -> list[Event]:
    return [Event(type="dream.created", id=f"n{number}") for number in range(first, first + count)]


def test_the_newest_events_come_first_in_pages(data: EventData, settings: BridgeSettings) -> None:
    """Events are listed newest first, in consecutive pages, and later events come before earlier ones."""
    publish(settings, *numbered(130))
    assert ids(data, length=3) == ["n129", "n128", "n127"]
    assert ids(data, start=128) == ["n1", "n0"]
    assert len(ids(data, length=10**9)) == 100
    publish(settings, *numbered(70, first=130))
    assert ids(data, length=2, start=69) == ["n130", "n129"]
    found = data.events("", "", 0, 1)
    assert (found.total, found.matching, found.rows[0]["type"]) == (200, 200, "dream.created")


def test_a_long_journal_is_not_read_again(
    make_data: Callable[..., EventData], settings: BridgeSettings, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the newest entries of the journal are read, each once; old and deleted entries are forgotten."""
    data = make_data(max_events=120)
    publish(settings, *numbered(300))
    assert data.events("", "", 0, 1).total == 120
    calls = []
    read = data._history.newest
    monkeypatch.setattr(data._history, "newest", lambda *args, **more: calls.append(args) or read(*args, **more))
    publish(settings, *numbered(3, first=300))
    assert ids(data, length=120)[:4] == ["n302", "n301", "n300", "n299"]
    assert len(calls) == 1
    client.delete(Keys(settings.channel_prefix).journal)
    assert ids(data) == []


def test_an_event_is_listed_once(data: EventData, settings: BridgeSettings, replays: Replays) -> None:
    """An event that was replayed is listed once: at its first entry, or at a replay if that entry is gone."""
    publish(settings, *numbered(3))
    last(replays.journal(ids=frozenset({"n0"})).run(FAST))
    last(replays.journal("again", ids=frozenset({"n0"})).run(FAST))
    assert ids(data) == ["n2", "n1", "n0"]
    assert [row["replay"] for row in data.events("", "", 0, 5).rows] == [False] * 3
    first = (replays.client.xrange(replays.keys.journal, count=1))[0][0]
    replays.client.xdel(replays.keys.journal, first)
    data._headers = []
    assert [(row["id"], row["replay"]) for row in data.events("", "", 0, 5).rows] == [
        ("n0", True),
        ("n2", False),
        ("n1", False),
    ]


def test_search(data: EventData, settings: BridgeSettings) -> None:
    """A search matches parts of id, type and source in any case; a glob matches types; a broken one is reported."""
    publish(settings, Event(type="Dream.made", id="aBc", source="Front"), Event(type="dream.made.twice", id="x"))
    for search, found in {"ABC": ["aBc"], "dream": ["x", "aBc"], "fro": ["aBc"], "payload": []}.items():
        assert ids(data, search) == found
    assert ids(data, "dream*") == ["x"]
    assert ids(data, " ?ream.made ") == ["aBc"]
    assert "not closed" in data.events("[", "", 0, 5).problem


def test_what_is_no_event_has_no_source(data: EventData, settings: BridgeSettings, client: Redis) -> None:
    """Invalid journal entries are listed without a source and cause no error."""
    key = Keys(settings.channel_prefix).journal
    client.xadd(key, {"id": b"\xff", "type": "t", "event": b"{"})
    client.xadd(key, {"other": "field"})
    assert [row["source"] for row in data.events("", "", 0, 5).rows] == ["", ""]
    assert ids(data, "zzz") == []


def test_states_choose(
    data: EventData, settings: BridgeSettings, register_handlers: Callable[..., None], start_subscriber: StartSubscriber
) -> None:
    """The filter "waiting" selects events that are not dispatched and those whose tasks are queued."""
    register_handlers("t.exact")
    publish(settings, *numbered(2))
    states = lambda: [row["tasks"][0]["state"] for row in data.events("", "waiting", 0, 5).rows]  # noqa: E731
    assert states() == ["WAITING", "WAITING"]
    start_subscriber()
    eventually(lambda: states() == ["SENT", "SENT"], "both tasks are queued")
    assert ids(data, "n1", state="waiting") == ["n1"]
    assert ids(data, state="failed") == []


@pytest.mark.parametrize(
    ("states", "buttons"),
    [
        ("SUCCESS SKIPPED", "succeeded"),
        ("SUCCESS FAILURE", "failed"),
        ("SUCCESS GIVEN_UP", "failed"),
        ("SUCCESS STARTED", "running"),
        ("RETRY FAILURE", "running failed"),
        ("WAITING", "waiting"),
        ("SENT STARTED", "running waiting"),
        ("SKIPPED", ""),
        ("", ""),
    ],
)
def test_what_the_buttons_mean(states: str, buttons: str) -> None:
    """A filter selects an event if one of its tasks has that state; "succeeded" requires all tasks."""
    assert [name for name, holds in BY_STATE.items() if holds(set(states.split()))] == buttons.split()


def test_dead_letters(
    data: EventData,
    make_data: Callable[..., EventData],
    replays: Replays,
    register_handlers: Callable[..., None],
) -> None:
    """Dead letters are listed in pages, newest first, can be searched, and show why they cannot be retried."""
    register_handlers("t.exact")
    for number in range(5):
        replays.park(number, reason="failure" if number else "payload")
    replays.park(5, handler="t.gone")
    replays.letters.add(DeadLetter.of_message("json", "no JSON", "channel", b"{secret"))
    found = data.dead_letters.page("", 0, 3)
    assert (found.total, found.matching, found.dead_letters) == (7, 7, 7)
    assert [(row["reason"], row["id"]) for row in found.rows] == [("json", ""), ("failure", "n5"), ("failure", "n4")]
    assert ["secret" in str(row) for row in found.rows] == [False] * 3
    assert [row["problem"] for row in found.rows][1:] == ["this application has no handler t.gone", ""]
    assert [row["id"] for row in data.dead_letters.page("", 5, 100).rows] == ["n1", "n0"]
    assert [row["id"] for row in data.dead_letters.page("PAYLOAD", 0, 100).rows] == ["n0"]
    assert data.dead_letters.page("dream.c", 0, 1).matching == 6
    data = make_data(max_read_bytes=1)
    assert data.dead_letters.page("dream.c", 0, 1).matching == 0  # only the newest dead letter is read


def test_the_page_of_what_is_no_event(data: EventData, settings: BridgeSettings, client: Redis) -> None:
    """An unknown id has no page, and neither has an id whose key contains no valid event."""
    assert data.page("x") is None
    client.set(Keys(settings.channel_prefix).event("x"), "{")
    assert data.page("x") is None
    publish(settings, Event(type="dream.created", id="y"))
    page = data.page("y")
    assert isinstance(page, Page)
    assert page.event is not None
    assert page.event.id == "y"


def test_nobody_waits_long_for_a_bus_that_is_away(
    app: Celery, proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page makes one short attempt to read the bus and then raises an error; the next attempt may succeed."""
    app.conf.update(bridge_channel_prefix=prefix, bridge_group="tests")
    monkeypatch.setenv("BRIDGE_REDIS_URL", proxy.url)
    data = EventData(app)
    proxy.blackhole()
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match="reading the journal"):
        data.events("", "", 0, 5)
    assert time.monotonic() - began < 4
    proxy.heal()
    assert data.events("", "", 0, 5).rows == []


def test_the_tree_as_lines() -> None:
    """Tasks are lines below their event, their events are below them, and hidden events are counted."""
    leaf = EventNode("leaf", "t", "", 2500)
    task = TaskNode("id", "t.exact", "SUCCESS", events=(leaf,))
    root = EventNode("root", "t", "", 1000, (task,), (replace(leaf, event_id="other", at_ms=0),), hidden=3)
    assert lines(Trace("leaf", "root", (root,))) == [
        Line(0, event=root),
        Line(1, task=task),
        Line(2, event=leaf, requested=True, after_s=1.5),
        Line(1, event=root.events[0]),
        Line(1, hidden=3),
    ]
    assert lines(None) == []
    assert find(Trace("leaf", "root", (root,)), "leaf") is leaf
    assert find(Trace("leaf", "root", (root,)), "none") is None

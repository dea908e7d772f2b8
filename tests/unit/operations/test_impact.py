"""What a replay would do, counted from the earlier runs of its tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.operations.impact import Impact, ImpactReader
from bridge.operations.replay_sources import DeadLetterSource, JournalSource, Source
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.entries import EntryFilter
from bridge.storage.in_flight import Ended
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.replays import FAST, Replays, last, registry_of

Count = Callable[..., Impact]
TRIP, FLIGHT, TICKET = "tests.chains.trip", "tests.chains.flight", "tests.chains.ticket"


@pytest.fixture
def storage(client: Redis, settings: BridgeSettings) -> Storage:
    return Storage(client, settings)


@pytest.fixture
def count(user_app: Celery, storage: Storage) -> Count:
    """Count what a replay of the journal would do; with a source, of that one."""

    def run(source: Source | None = None, limit_s: float = 60, **selection: Any) -> Impact:
        source = source or JournalSource(storage, EntryFilter(**selection))
        reader = ImpactReader(user_app, storage, limit_s)
        for _ in reader.read(source.read("-", "+")):
            pass
        return reader.impact

    return run


@pytest.fixture
def run(bus: EventBus, storage: Storage) -> Callable[..., Event]:
    """Record that a handler succeeded on an event, also in a replay, and publish what it published."""

    def do(event: Event, handler: str, *published: Event, replay: str | None = None) -> Event:
        task_id = task_id_for("tests", event.id, handler, replay)
        storage.ledger.end(task_id, Ended("", "celery", 1))
        for one in published:
            metadata = {"causationId": event.id, "taskId": task_id, "hops": event.hops + 1}
            bus.publish(one.model_copy(update={"metadata": metadata}))
        return event

    return do


def test_direct_tasks_and_all_that_followed_are_counted(bus: EventBus, run: Callable[..., Event], count: Count) -> None:
    """Tasks that run, those that had succeeded, and events and tasks on all further levels are counted by handler."""
    booked = bus.publish("trip.booked", id="trip").event
    flight, ticket = Event(type="trip.flight", id="f"), Event(type="trip.ticket", payload={"seat": 1}, id="t")
    run(booked, TRIP, flight)
    run(flight, FLIGHT, ticket, Event(type="trip.ticket", payload={"seat": 2}, id="t2"))
    run(ticket, TICKET)
    bus.publish("trip.booked", id="new")
    found = count(event_type="trip.booked")
    assert found == Impact(2, Counter({TRIP: 2}), Counter({TRIP: 1}), 3, Counter({FLIGHT: 1, TICKET: 1}), complete=True)
    assert found.sentences() == [
        f"2 tasks would run: {TRIP} 2",
        f"1 had succeeded before and would run again: {TRIP} 1",
        "what they publish are new events, which run their handlers in every application on this bus; last time "
        f"3 events followed, with 2 tasks of this application: {FLIGHT} 1, {TICKET} 1",
    ]


def test_handlers_that_reject_an_event_are_not_counted(bus: EventBus, count: Count) -> None:
    """A handler whose where= returns false or raises an error would not run."""
    for number, payload in enumerate(({"seat": 1}, {"seat": 2}, None)):
        bus.publish("trip.ticket", payload, id=f"t{number}")
    bus.publish("nobody.cares", id="n")
    assert count() == Impact(4, Counter({TICKET: 1}))
    assert count(event_type="nobody.cares").sentences() == [
        "no task would run: this application has no handler for these events, or where= rejects them"
    ]


def test_only_the_latest_runs_count(bus: EventBus, client: Redis, run: Callable[..., Event], count: Count) -> None:
    """An event that was replayed before caused events in each run: those of one run would follow again."""
    booked = bus.publish("trip.booked", id="trip").event
    run(booked, TRIP, Event(type="trip.flight", id="first"))
    client.zadd(Keys(bus.settings.channel_prefix).replays("tests", "trip"), {"again": 1})
    run(booked, TRIP, Event(type="trip.flight", id="second"), replay="again")
    found = count(event_type="trip.booked")
    assert (found.published, found.succeeded, found.tasks) == (1, Counter({TRIP: 1}), Counter({TRIP: 1}))


def test_only_what_the_handlers_of_the_replay_published_follows(
    bus: EventBus, storage: Storage, run: Callable[..., Event], count: Count
) -> None:
    """With one handler, events that other handlers or programs published for the same cause do not follow."""
    booked = bus.publish("trip.booked", id="trip").event
    run(booked, "tests.chains.other", Event(type="trip.flight", id="of-another-handler"))
    bus.publish(booked.child("trip.flight", id="by-hand"))
    run(booked, TRIP, Event(type="trip.hotel", id="h"))
    source = JournalSource(storage, EntryFilter(ids=frozenset({"trip"})), TRIP, lambda _: True)
    assert count(source).published == 1


def test_dead_letters_are_counted_by_their_handler(bus: EventBus, storage: Storage, count: Count) -> None:
    """A retry runs the handler that failed; what cannot be retried is not counted."""
    event = bus.publish("trip.booked", id="trip").event
    for handler, task_id in ((TRIP, "t1"), ("tests.chains.gone", "t2")):
        storage.dead_letters.add(DeadLetter.of_event("failure", "boom", event, event.encode(), handler, task_id))
    source = DeadLetterSource(storage, EntryFilter(), registry_of({TRIP: "trip.booked"}))
    assert count(source) == Impact(1, Counter({TRIP: 1}))


def test_what_is_unknown_is_said(bus: EventBus, client: Redis, run: Callable[..., Event], count: Count) -> None:
    """If an event that followed has expired, or the time is over, the numbers are a lower bound."""
    booked = bus.publish("trip.booked", id="trip").event
    run(booked, TRIP, Event(type="trip.flight", id="f"), Event(type="trip.hotel", id="h"))
    keys = Keys(bus.settings.channel_prefix)
    client.delete(keys.event("f"), keys.seen("f"))
    found = count(event_type="trip.booked")
    assert (found.complete, found.published) == (False, 1)
    assert "last time at least 1 event followed" in found.sentences()[-1]
    bus.publish_many([Event(type="trip.ticket", payload={"seat": 1}) for _ in range(250)])
    late = count(event_type="trip.ticket", limit_s=-1)
    assert (late.complete, late.events) == (False, 100)
    assert late.sentences()[0] == f"at least 100 tasks would run: {TICKET} 100"


def test_circles_end(bus: EventBus, run: Callable[..., Event], count: Count) -> None:
    """Events of other programs that cause each other do not keep the count from ending."""
    booked = bus.publish("trip.booked", id="trip").event
    run(booked, TRIP, Event(type="trip.made", id="a", metadata={}))
    bus.publish(Event(type="trip.made", id="b", metadata={"causationId": "a"}))
    bus.publish(Event(type="trip.made", id="c", metadata={"causationId": "b"}))
    bus.client.zadd(Keys(bus.settings.channel_prefix).consequences("c"), {"a": 1})
    assert 3 <= count(event_type="trip.booked").published <= bus.settings.max_hops


def test_long_lists_of_handlers_are_cut() -> None:
    """A sentence names the eight most frequent handlers, and counts the others."""
    impact = Impact(1, Counter({f"h{number:02d}": 20 - number for number in range(10)}))
    assert impact.sentences()[0].endswith("h06 14, h07 13 and 2 other handlers")


def test_a_replay_ends_where_its_preview_did(client: Redis, settings: BridgeSettings, bus: EventBus) -> None:
    """Events that are appended between preview and confirmation are not replayed."""
    bus.publish("dream.created", id="before")
    replays = Replays(client, settings)
    replay = replays.journal()
    assert [item.event_id for item in replay.remaining()] == ["before"]
    bus.publish("dream.created", id="after")
    assert last(replay.run(FAST)).replayed == 1
    assert replays.ids() == ["before"]

"""Traces: the tasks and events caused by an event, starting at any event of its chain."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.operations.trace import Tracer, further
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.trees import events, trees


@pytest.fixture
def tracer(user_app: Celery, client: Redis, settings: BridgeSettings) -> Tracer:
    return Tracer(user_app, Storage(client, settings))


def foreign(event_id: str, cause: str | None = None, **metadata: Any) -> Event:
    """An event as external programs write it, without hops."""
    return Event(type="other.made", id=event_id, metadata={"causationId": cause, **metadata} if cause else None)


def test_unknown_ids_have_no_trace(tracer: Tracer, bus: EventBus) -> None:
    """An unknown id has no trace, whatever its form."""
    bus.publish("plain.made", id="known")
    for unknown in ("unknown", "", "x" * 10_000, "träume", "a*", "kno?n"):
        assert tracer.trace(unknown) is None
    assert tracer.trace("known") is not None


# Chains of other programs


def test_an_expired_event_in_the_middle_still_links(bus: EventBus, client: Redis, tracer: Tracer) -> None:
    """An expired event keeps its place in the chain."""
    first = bus.publish("other.first", id="first").event
    middle = bus.publish(first.child("other.middle", id="middle")).event
    bus.publish(middle.child("other.last", id="last"))
    keys = Keys(bus.settings.channel_prefix)
    client.delete(keys.event("middle"), keys.journal)
    assert trees(tracer, "first") == [("other.first", [("(middle)", [("other.last", [])])])]
    assert trees(tracer, "middle") == trees(tracer, "last") == [("(middle)", [("other.last", [])])]


def test_events_whose_key_is_gone_are_read_from_the_journal(bus: EventBus, client: Redis, tracer: Tracer) -> None:
    """Events whose keys have expired are read from the journal."""
    first = bus.publish("other.first", id="first").event
    bus.publish(first.child("other.last", {"large": "x" * 1000}, id="last"))
    keys = Keys(bus.settings.channel_prefix)
    client.delete(keys.event("first"), keys.event("last"))
    assert trees(tracer, "last") == [("other.first", [("other.last", [])])]


def test_circles_end(bus: EventBus, tracer: Tracer) -> None:
    """Events of other programs that cause each other are each shown once, for every starting event."""
    bus.publish_many([foreign("a", "c"), foreign("b", "a"), foreign("c", "b"), foreign("self", "self")])
    for asked in "abc":
        found = tracer.trace(asked)
        assert found is not None
        assert sorted(event.event_id for root in found.roots for event in events(root)) == ["a", "b", "c"]
    assert trees(tracer, "self") == [("other.made", [])]


def test_long_chains_are_bounded(bus: EventBus, tracer: Tracer) -> None:
    """A trace shows up to 50 of 200 events of a chain, including the requested one, and counts the hidden ones."""
    bus.publish_many([foreign(f"n{number}", f"n{number - 1}" if number else None) for number in range(200)])
    for asked in ("n0", "n100", "n199"):
        found = tracer.trace(asked)
        assert found is not None
        (root,) = found.roots
        shown = events(root)
        assert 40 < len(shown) <= 50
        assert asked in [event.event_id for event in shown]
        assert shown[-1].hidden == (0 if asked == "n199" else 1)


@pytest.mark.parametrize("way", ["cause", "chain"])
def test_many_consequences_are_bounded(bus: EventBus, tracer: Tracer, way: str) -> None:
    """A trace shows fifty of 1,000 consequences or first events and the requested one, and counts the others."""
    if way == "cause":
        bus.publish(foreign("root"))
    parts: dict[str, Any] = {"metadata": {"causationId": "root"}} if way == "cause" else {"correlation_id": "root"}
    bus.publish_many([Event(type="other.made", id=f"n{number:03d}", **parts) for number in range(1000)])
    for asked in ("root", "n000", "n999"):
        found = tracer.trace(asked)
        assert found is not None
        shown, hidden = (
            (found.roots[0].events, found.roots[0].hidden) if way == "cause" else (found.roots, found.hidden)
        )
        assert len(shown) + hidden == 1000
        assert further(hidden) in ("950 or more", "949")  # the index has room for 1000
        assert len(shown) in (50, 51)
        assert asked in ("root", *(event.event_id for event in shown))


def test_consequences_are_in_the_order_of_their_publication(bus: EventBus, tracer: Tracer) -> None:
    """Consequences and first events are in order of publication, even within one millisecond."""
    ids = [f"n{number * 7 % 40:02d}" for number in range(40)]
    bus.publish(foreign("root"))
    bus.publish_many([foreign(event_id, "root") for event_id in ids])
    bus.publish_many([Event(type="other.made", id=f"c{event_id}", correlation_id="chain") for event_id in ids])
    below, chain = tracer.trace("root"), tracer.trace("chain")
    assert below is not None
    assert chain is not None
    assert [event.event_id for event in below.roots[0].events] == ids
    assert [event.event_id for event in chain.roots] == [f"c{event_id}" for event_id in ids]


def test_wide_and_deep_is_bounded(bus: EventBus, tracer: Tracer) -> None:
    """A trace that branches repeatedly is limited to 500 events, and hidden events are counted at each branch."""
    level = ["root"]
    bus.publish(foreign("root"))
    for _ in range(2):
        below = [(f"{above}.{number}", above) for above in level for number in range(40)]
        bus.publish_many([foreign(event_id, above) for event_id, above in below])
        level = [event_id for event_id, _ in below]
    for asked in ("root", level[-1]):
        found = tracer.trace(asked)
        assert found is not None
        shown = events(found.roots[0])
        assert len(shown) == 500
        assert asked in [event.event_id for event in shown]
        assert sum(event.hidden for event in shown) == 1 + 40 + 1600 - 500


def test_something_else_at_the_keys_of_a_trace(bus: EventBus, client: Redis, tracer: Tracer) -> None:
    """Invalid values in the keys of the index or of events hide only their part of a trace, and cause no error."""
    first = bus.publish("other.first", id="first").event
    last = bus.publish(first.child("other.last", id="last")).event
    bus.publish(last.child("other.more", id="more"))
    keys = Keys(bus.settings.channel_prefix)
    client.set(keys.consequences("first"), "in the way")
    assert trees(tracer, "first") == [("other.first", [])]
    assert trees(tracer, "more") == [("other.first", [("other.last", [("other.more", [])])])]
    client.delete(keys.event("last"))
    client.rpush(keys.event("last"), "a list")
    client.set(keys.event("more"), b"\xff{")
    assert trees(tracer, "last") == [("other.first", [("other.last", [("other.more", [])])])], "the journal has both"
    client.delete(keys.seen("more"))
    assert trees(tracer, "last") == [("other.first", [("other.last", [("(more)", [])])])]


@pytest.mark.parametrize("task_id", ["elsewhere", "x" * 500, 7, None, ["a"]], ids=repr)
def test_tasks_that_nobody_knows(bus: EventBus, tracer: Tracer, task_id: Any) -> None:
    """An event that names a task of another application is shown below that task, unless the task id is invalid."""
    bus.publish_many([foreign("root"), foreign("below", "root", taskId=task_id)])
    below: Any = ("other.made", [])
    if task_id == "elsewhere":
        below = ("UNKNOWN", [below])
    assert trees(tracer, "root") == [("other.made", [below])]

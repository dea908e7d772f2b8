"""The event bus inside one process."""

from __future__ import annotations

import logging
import threading
from collections import Counter

import pytest

from bridge.bus.local import LocalBus
from bridge.errors import InvalidEvent
from bridge.events.event import Event


@pytest.fixture
def bus() -> LocalBus:
    return LocalBus()


def test_handlers_by_pattern(bus: LocalBus) -> None:
    """Each handler receives the events that match its glob, in order of subscription, before publish() returns."""
    heard: list[tuple[str, str]] = []
    for pattern in ("dream.*", "*", "dream.created", "other"):
        bus.subscribe(pattern, lambda event, pattern=pattern: heard.append((pattern, event.type)))
    bus.publish("dream.created")
    assert heard == [(pattern, "dream.created") for pattern in ("dream.*", "*", "dream.created")]
    heard.clear()
    bus.publish("Dream.created")
    assert heard == [("*", "Dream.created")]


@pytest.mark.parametrize("pattern", ["", "a[b"])
def test_pattern_that_matches_nothing(bus: LocalBus, pattern: str) -> None:
    """A pattern that cannot match any event is refused immediately."""
    with pytest.raises(ValueError, match="pattern"):
        bus.subscribe(pattern, print)


def test_unsubscribe(bus: LocalBus) -> None:
    """Ending one subscription keeps a second one of the same handler, and ending it twice changes nothing."""
    heard: list[Event] = []
    end_first, end_second = bus.subscribe("a", heard.append), bus.subscribe("a", heard.append)
    end_first()
    end_first()
    bus.publish("a")
    assert len(heard) == 1
    end_second()
    bus.publish("a")
    assert len(heard) == 1


def test_publish_takes_fields_or_an_event(bus: LocalBus) -> None:
    """The result and the handlers get the event as it was published."""
    heard: list[Event] = []
    bus.subscribe("*", heard.append)
    first = bus.publish("a", {"x": 1}, id="i", source="s").event
    assert (first.type, first.payload, first.id, first.source) == ("a", {"x": 1}, "i", "s")
    given = Event(type="b", id="j")
    assert bus.publish(given).event is given
    assert heard == [first, given]


@pytest.mark.parametrize("extra", [{"payload": 1}, {"source": "s"}], ids=["payload", "field"])
def test_an_event_takes_nothing_beside_it(bus: LocalBus, extra: dict[str, object]) -> None:
    """Fields in addition to an event would be lost, so they are refused."""
    with pytest.raises(InvalidEvent, match="an event alone"):
        bus.publish(Event(type="a"), **extra)


def test_a_raising_handler_stops_no_other(bus: LocalBus, caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged with the event; it reaches neither later handlers nor the publisher."""
    heard: list[Event] = []
    bus.subscribe("*", lambda event: event.payload["missing"])
    bus.subscribe("*", heard.append)
    with caplog.at_level(logging.ERROR, logger="bridge"):
        published = bus.publish("dream.created", {})
    assert heard == [published.event]
    assert "KeyError: 'missing'" in caplog.text
    assert f"failed for event {published.event.id} (dream.created)" in caplog.text


def test_duplicate(bus: LocalBus) -> None:
    """An id that was published before is a duplicate: no handler runs, and the first event is kept."""
    heard: list[Event] = []
    bus.subscribe("*", heard.append)
    assert not bus.publish("a", 1, id="same").duplicate
    assert bus.publish("a", 2, id="same").duplicate
    assert [event.payload for event in heard] == [1]
    kept = bus.get_event("same")
    assert kept is not None
    assert kept.payload == 1


def test_refused_event_leaves_no_trace() -> None:
    """An event over the size limit is refused, and its id can still be published."""
    bus = LocalBus(max_event_bytes=200)
    with pytest.raises(InvalidEvent, match="limit is 200"):
        bus.publish("a", "x" * 200, id="i")
    assert bus.get_event("i") is None
    assert not bus.publish("a", "x", id="i").duplicate


def test_get_event(bus: LocalBus) -> None:
    """get_event() returns complete events, unaffected by handlers that change the payload, and None for unknown ids."""
    bus.subscribe("*", lambda event: event.payload.clear())
    event = Event(type="a", payload={"k": [1]}, source="s", metadata={"m": 1}, extra=True)
    fields = event.model_copy(deep=True).to_dict()
    bus.publish(event)
    kept = bus.get_event(event.id)
    assert kept is not None
    assert kept.to_dict() == fields
    assert bus.get_event("unknown") is None


@pytest.mark.parametrize(("limit", "kept"), [(3, "cde"), (1, "e"), (0, "")])
def test_memory_is_bounded_by_count(limit: int, kept: str) -> None:
    """The oldest events are evicted first; an evicted event still counts as a duplicate."""
    bus = LocalBus(max_events=limit)
    for name in "abcde":
        bus.publish("x", id=name)
    assert "".join(name for name in "abcde" if bus.get_event(name)) == kept
    assert bus.publish("x", id="a").duplicate


def test_memory_is_bounded_by_bytes() -> None:
    """Large events evict older ones even if there are few; freed space is used again."""
    size = len(Event(type="x", payload="." * 1000, id="0", timestamp=1_760_000_000_000).encode())
    bus = LocalBus(max_store_bytes=3 * size)
    for name in "0123456789":
        bus.publish("x", "." * 1000, id=name, timestamp=1_760_000_000_000)
    assert [name for name in "0123456789" if bus.get_event(name)] == ["7", "8", "9"]
    bus.publish("x", "." * 4000, id="huge")
    assert bus.get_event("huge") is None
    bus.publish("x", id="small")
    assert bus.get_event("small") is not None


def test_remembered_ids_are_bounded() -> None:
    """The oldest ids are forgotten, so the memory of a process that publishes for years does not grow."""
    bus = LocalBus(max_ids=3)
    for name in "abcd":
        bus.publish("x", id=name)
    assert [bus.publish("x", id=name).duplicate for name in "dcb"] == [True] * 3
    assert not bus.publish("x", id="a").duplicate


def test_handlers_may_use_the_bus(bus: LocalBus) -> None:
    """A running handler can publish, look up events and end its own subscription."""
    heard: list[str] = []

    def relay(event: Event) -> None:
        end()
        assert bus.get_event(event.id) is not None
        bus.publish("second")
        heard.append(event.type)

    end = bus.subscribe("first", relay)
    bus.subscribe("second", lambda event: heard.append(event.type))
    bus.publish("first")
    bus.publish("first")
    assert heard == ["second", "first"]


def test_threads() -> None:
    """If many threads publish the same ids, each id is published exactly once."""
    bus, heard, results = LocalBus(max_events=50), Counter[str](), Counter[bool]()
    lock, barrier = threading.Lock(), threading.Barrier(8)

    def count(event: Event) -> None:
        with lock:
            heard[event.id] += 1

    def work() -> None:
        barrier.wait()
        for number in range(200):
            end = bus.subscribe("never", print)
            duplicate = bus.publish("x", id=f"n{number}").duplicate
            end()
            with lock:
                results[duplicate] += 1

    bus.subscribe("x", count)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == Counter({f"n{number}": 1 for number in range(200)})
    assert results == {False: 200, True: 1400}
    assert sum(bus.get_event(f"n{number}") is not None for number in range(200)) == 50

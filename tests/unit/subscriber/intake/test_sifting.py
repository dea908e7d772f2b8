"""Received events that are in the journal already: they are dropped without decoding, and no other event is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.bus.listener import ChannelListener
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.subscriber import Subscriber
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually

Decoded = Callable[[Subscriber], int]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Return how many received messages a subscriber has decoded."""
    counts: Counter[int] = Counter()
    decode = ChannelListener._decode

    def counting(feed: ChannelListener, *arguments: object) -> None:
        counts[id(feed._counters)] += 1
        decode(feed, *arguments)

    monkeypatch.setattr(ChannelListener, "_decode", counting)
    return lambda subscriber: counts[id(subscriber.counters)]


def shout(client: Redis, prefix: str, *ids: str) -> None:
    """Publish events as external programs do."""
    with client.pipeline(transaction=False) as pipe:
        for event_id in ids:
            data = Event(type="a.b", id=event_id).encode()
            pipe.set(f"{prefix}event:{event_id}", data, ex=3600)
            pipe.publish(f"{prefix}a.b", data)
        pipe.execute()


def heard(subscriber: Subscriber, count: int) -> None:
    """Wait until the subscriber has processed this many messages."""

    def done() -> bool:
        info = subscriber.info()
        # A dropped message is counted before it counts as received; a scan of the keys counts duplicates too.
        through = info.get("appended", 0) + info.get("duplicate", 0) + info.get("invalid", 0)
        return info.get("received", 0) == count <= through

    eventually(done, f"{count} messages are processed")


def fall_behind(subscriber: Subscriber, bus: EventBus, decoded: Decoded) -> None:
    """Let a subscriber receive 200 events that are in the journal; it drops the second hundred without decoding."""
    bus.publish_many([Event(type="a.b", id=f"own{number}") for number in range(100)])
    heard(subscriber, 100)
    before = decoded(subscriber)
    bus.publish_many([Event(type="a.b", id=f"own{number}") for number in range(100, 200)])
    heard(subscriber, 200)
    assert decoded(subscriber) == before
    assert subscriber.info()["duplicate"] == 200


def test_two_subscribers_hear_the_same(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, queues: Queues, decoded: Decoded
) -> None:
    """Two subscribers together append each event once, and drop most second copies without decoding them."""
    register_handlers("t.all")
    pair = [start_subscriber("one"), start_subscriber("two")]
    for begin in range(0, 2000, 100):
        shout(client, prefix, *(f"n{number}" for number in range(begin, begin + 100)))
        for subscriber in pair:
            heard(subscriber, begin + 100)
    eventually(lambda: queues.length() >= 2000, "all events are dispatched")
    assert queues.tasks() == {f"t.all a.b n{number}": 1 for number in range(2000)}
    assert client.xlen(Keys(prefix).journal) == 2000

    def appended() -> int:
        """Count events appended by both subscribers; a scan may append one before its message arrives."""
        infos = [subscriber.info() for subscriber in pair]
        return sum(info.get("appended", 0) + info.get("caught_up", 0) for info in infos)

    eventually(lambda: appended() == 2000, "each event is appended by one subscriber")
    infos = [subscriber.info() for subscriber in pair]
    assert sum(map(decoded, pair)) < 3000
    assert not {"errors", "invalid"} & (infos[0] | infos[1]).keys()


def test_own_events_are_let_go(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, decoded: Decoded
) -> None:
    """Events of a bus with persistence are in the journal first, so a subscriber soon decodes none of them."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    fall_behind(subscriber, bus, decoded)
    eventually(lambda: queues.length() == 200, "all events are dispatched")
    assert "appended" not in subscriber.info()


def test_an_event_that_is_new_to_one_who_is_behind(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    bus: EventBus,
    queues: Queues,
    decoded: Decoded,
) -> None:
    """If no other subscriber is faster, a subscriber appends external events itself, including the first."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    fall_behind(subscriber, bus, decoded)
    for number in range(5):
        client.publish(f"{prefix}a.b", Event(type="a.b", id=f"foreign{number}").encode())  # written to no key
    eventually(lambda: queues.length() == 205, "the external events are dispatched")
    eventually(lambda: subscriber.info().get("appended") == 5, "the external events are counted")


def test_who_was_ahead_is_gone(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, queues: Queues, decoded: Decoded
) -> None:
    """When the faster of two subscribers has stopped, the slower one appends all further external events."""
    register_handlers("t.all")
    pair = [start_subscriber("one"), start_subscriber("two")]
    count = 0

    def next_one() -> int:
        """Publish an event; return which subscriber appended it."""
        nonlocal count
        before = [subscriber.info().get("appended", 0) for subscriber in pair]
        client.publish(f"{prefix}a.b", Event(type="a.b", id=f"n{count}").encode())
        count += 1
        for subscriber in pair:
            heard(subscriber, count)
        after = [subscriber.info().get("appended", 0) for subscriber in pair]
        return [new - old for new, old in zip(after, before, strict=True)].index(1)

    next_one()
    pair.pop(next_one()).stop()
    (left,) = pair
    before = left.info().get("appended", 0)
    for number in range(count, count + 20):
        client.publish(f"{prefix}a.b", Event(type="a.b", id=f"n{number}").encode())
    heard(left, count + 20)
    assert left.info()["appended"] == before + 20
    eventually(lambda: queues.length() == count + 20, "all events are dispatched")
    assert set(queues.tasks().values()) == {1}


CHANGES = {
    "another payload": ("a.b", b'"a.b"', b'"payload":{"x":1}', "id_conflict"),
    "another type": ("c.d", b'"c.d"', b'"payload":null', "id_conflict"),
    "another channel": ("c.d", b'"a.b"', b'"payload":null', "channel_mismatch"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_differs_is_no_duplicate(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    bus: EventBus,
    queues: Queues,
    decoded: Decoded,
    change: tuple[str, bytes, bytes, str],
) -> None:
    """A known id with other content, or a known event on another channel, is refused even while events are dropped."""
    channel, event_type, payload, reason = change
    register_handlers("t.all")
    subscriber = start_subscriber()
    fall_behind(subscriber, bus, decoded)
    prefix = bus.settings.channel_prefix
    original = client.get(f"{prefix}event:own7")
    assert b'"payload":null' in original
    data = original.replace(b'"payload":null', payload).replace(b'"a.b"', event_type)
    client.publish(prefix + channel, data)
    (letter,) = eventually(lambda: Storage(client, bus.settings).dead_letters.latest(10), "the dead letter is written")
    assert (letter.reason, letter.origin) == (reason, prefix + channel)
    heard(subscriber, 201)
    eventually(lambda: queues.length() >= 200, "all events are dispatched")
    assert queues.length() == client.xlen(Keys(prefix).journal) == 200

"""Random input: no message stops a subscriber or hides the valid events around it."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kombu.utils.json import dumps as kombu_dumps
from kombu.utils.json import loads as kombu_loads
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.bus.admission import Admission
from bridge.bus.listener import restore_sources
from bridge.errors import InvalidEvent
from bridge.events.encoded import EncodedEvent
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.subscriber import Subscriber
from tests.support.apps import StartSubscriber
from tests.support.mutations import CHANNELS, VALID, mutated
from tests.support.queues import Queues
from tests.support.strategies import examples
from tests.support.waiting import eventually

LIMIT = 1024 * 1024
#: Every reason for which a message is refused before it is in the journal.
REASONS = {
    "size",
    "empty",
    "encoding",
    "json",
    "depth",
    "integer_range",
    "non_finite",
    "cloudevent",
    "reserved",
    "not_object",
}
REASONS |= {"no_id", "id", "no_type", "type", "channel_mismatch", "timestamp", "source", "metadata", "correlationId"}


def decoded(data: bytes, channel_type: str | None) -> Event | InvalidEvent:
    """Return the event in *data*, or the error that it raises."""
    try:
        return Event.decode(data, max_bytes=LIMIT, channel_type=channel_type)
    except InvalidEvent as error:
        return error


def repaired(value: Any) -> Any:
    """Return decoded JSON with U+FFFD in place of each half of a surrogate pair."""
    return json.loads(
        json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def check(data: bytes, channel_type: str | None) -> None:
    """Assert that *data* is refused for a known reason, or is an event that every encoding preserves."""
    event = decoded(data, channel_type)
    if isinstance(event, InvalidEvent):
        assert event.reason in REASONS
        assert len(str(event)) < 500
        return
    assert event.type == (channel_type or event.type)
    fields, sent = event.to_dict(), repaired(json.loads(data))
    if sent.get("source") == "RedisEventBus":
        assert (sent.pop("source"), event.source) == ("RedisEventBus", None)
    again = Event.decode(event.encode(), max_bytes=4 * LIMIT, channel_type=channel_type)
    for copy in (again.to_dict(), Event.from_dict(fields).to_dict(), Event.model_validate(event).to_dict()):
        assert repr(copy) == repr(fields)
    assert (again.encode(), again.digest, repr(again)) == (event.encode(), event.digest, repr(event))
    assert repr(kombu_loads(kombu_dumps(fields))) == repr(fields), "the worker receives the same fields"
    renamed = {"eventId", "eventType", "correlation_id"}
    assert {name for name, value in sent.items() if value is not None} - renamed <= set(fields)
    assert repr(fields["payload"]) == repr(sent.get("payload"))
    assert (event.hops >= 0, event.occurred_at == again.occurred_at) == (True, True)


TYPES = st.sampled_from([None, "a.b", "dream.created", "", "event:1", "\\xff", "x" * 1000])
TEXT = st.text(max_size=8) | st.sampled_from(["a.b", "i-1", "\ud800", "\0", "__type__", "__value__", "RedisEventBus"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 10**30, 1e308, -0.0])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
NAMES = [
    "payload",
    "timestamp",
    "source",
    "metadata",
    "correlationId",
    "correlation_id",
    "eventId",
    "eventType",
    "self",
]
NEAR_EVENTS = st.fixed_dictionaries(
    {},
    optional={"id": st.just("i-1") | st.integers(0, 9) | ANY_JSON, "type": st.just("a.b") | ANY_JSON}
    | dict.fromkeys(NAMES, ANY_JSON),
)


@settings(max_examples=examples(300), deadline=None)
@given(data=st.binary(max_size=60), channel_type=TYPES)
def test_any_bytes(data: bytes, channel_type: str | None) -> None:
    """Any bytes are an event or are refused for a known reason."""
    check(data, channel_type)


@settings(max_examples=examples(600), deadline=None)
@given(value=ANY_JSON | NEAR_EVENTS, channel_type=TYPES, ascii_only=st.booleans())
@example({"id": "i", "type": "a", "correlation_id": "c", "correlationId": None}, None, True)
@example({"id": None, "eventId": "i", "type": None, "eventType": "a"}, None, True)
@example({"id": "i", "type": "a", "payload": [{"__type__": "uuid", "__value__": {"hex": "0" * 32}}]}, None, True)
def test_any_json(value: Any, channel_type: str | None, ascii_only: bool) -> None:
    """Any JSON, including Python's extensions, is refused for a known reason or preserved by every encoding."""
    check(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"), channel_type)


#: Batches of a hundred messages each, in the run of one seed.
BATCHES = 30


@settings(max_examples=examples(500), deadline=None)
@given(chance=st.randoms(), channel_type=TYPES)
def test_broken_bytes(chance: random.Random, channel_type: str | None) -> None:
    """A randomly changed event is an event or is refused for a known reason."""
    check(mutated(chance), channel_type)


# With a real Redis


@dataclass
class Expected:
    """The expected results of all messages so far, computed without Redis."""

    prefix: str
    digests: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    letters: set[tuple[str, str, bytes]] = field(default_factory=set)

    def add(self, data: bytes, origin: bytes, channel_type: str | None = None) -> None:
        event = decoded(data, channel_type)
        if isinstance(event, InvalidEvent):
            name = (self.prefix.encode() + origin).decode(errors="backslashreplace")
            self.letters.add((event.reason, name[:500], data[:4096]))
        elif event.hops > 16:
            self.letters.add(("hop_limit", self.prefix + event.type, kept(data, channel_type)[:4096]))
        elif event.id not in self.digests:
            self.digests[event.id] = event.digest
        elif self.digests[event.id] == event.digest:
            self.repeated += 1
        else:
            self.letters.add(("id_conflict", self.prefix + event.type, kept(data, channel_type)[:4096]))


def kept(data: bytes, channel_type: str | None) -> bytes:
    return EncodedEvent.receive(data, max_bytes=LIMIT, channel_type=channel_type).data


def journalled(client: Redis, prefix: str) -> Counter[str]:
    return Counter(fields[b"id"].decode() for _, fields in client.xrange(Keys(prefix).journal))


def all_is_well(subscriber: Subscriber) -> bool:
    threads = {thread.name for thread in threading.enumerate() if thread.is_alive()}
    return {"bridge-listen", "bridge-catch-up", "bridge-dispatch"} <= threads and "errors" not in subscriber.info()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_broken_messages(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
    seed: int,
) -> None:
    """Each valid message among broken ones arrives once, and each broken one is counted and kept."""
    register_handlers("t.all")
    subscriber, expected, chance = start_subscriber(), Expected(prefix), random.Random(seed)
    sent, neighbours = 0, Counter[str]()
    for batch in range(BATCHES):
        messages = [(chance.choice(CHANNELS), mutated(chance)) for _ in range(90)] + [(b"a.b", b""), (b"", b"")]
        for count in range(10):
            event = Event(type=chance.choice(["dream.created", "x/y:z-1_A"]), id=f"next-{batch}-{count}")
            neighbours[event.id] += 1
            messages.append((event.type.encode(), event.encode()))
        chance.shuffle(messages)
        with client.pipeline(transaction=False) as pipe:
            for channel, data in messages:
                pipe.publish(prefix.encode() + channel, data)
                expected.add(data, channel, channel.decode(errors="backslashreplace"))
            pipe.execute()
        sent += len(messages)
        eventually(lambda: neighbours.keys() <= journalled(client, prefix).keys(), "the valid events are stored")
        assert all_is_well(subscriber)
    eventually(lambda: queues.length() >= len(expected.digests), "all accepted events are dispatched")
    assert journalled(client, prefix) == dict.fromkeys(expected.digests, 1)
    assert len({message["headers"]["id"] for message in queues.messages()}) == queues.length() == len(expected.digests)
    counts = {"received": sent, "appended": len(expected.digests), "duplicate": expected.repeated}
    counts["invalid"] = len(expected.letters)
    eventually(lambda: counts.items() <= subscriber.info().items(), f"the counters are {counts}")
    letters = Storage(client, settings).dead_letters.latest(10_000)
    assert len(letters) == len(expected.letters) > 100
    assert {(letter.reason, letter.origin, letter.raw) for letter in letters} == expected.letters
    assert len(expected.digests) > len(neighbours) + 10, "some broken messages are still events"
    assert expected.repeated, "some of them are repetitions"
    assert all_is_well(subscriber)


@pytest.mark.parametrize("seed", [4, 5])
def test_broken_keys(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
    seed: int,
) -> None:
    """Catch-up finds each valid key among broken ones, whatever their names, and reports each broken one."""
    register_handlers("t.all")
    chance, expected = random.Random(seed), Expected(prefix)
    names = [b"k%d" % count for count in range(300)] + [b"", b"*", b"a b\n", b"k" * 100_000]
    alike = {b"%s%d" % (name, count): name for count in range(30) for name in (b"\xff", rb"\xff")}  # equal as text
    values = {name: mutated(chance) for name in names} | alike
    neighbours = {f"next-{count}" for count in range(100)}
    values |= {name.encode(): Event(type="a.b", id=name).encode() for name in neighbours}
    for name in chance.sample(list(values), len(values)):
        client.set(f"{prefix}event:".encode() + name, values[name], ex=3600)
        expected.add(values[name], b"event:" + name)
    subscriber = start_subscriber()
    eventually(lambda: queues.length() >= len(expected.digests), "all accepted events are dispatched")
    assert journalled(client, prefix) == dict.fromkeys(expected.digests, 1)
    assert neighbours <= expected.digests.keys()
    # SCAN decides which of several keys with one id comes first, so their conflicts cannot be predicted.
    kept = {
        (letter.reason, letter.origin, letter.raw) for letter in Storage(client, settings).dead_letters.latest(5000)
    }
    assert {reason for reason, _, _ in kept ^ expected.letters} <= {"id_conflict"}
    assert all_is_well(subscriber)


@pytest.mark.parametrize("seed", [6])
def test_broken_keys_behind_a_broadcast(client: Redis, prefix: str, settings: BridgeSettings, seed: int) -> None:
    """A key that is read for the real source of an event changes at most the source, whatever it contains."""
    chance, sources = random.Random(seed), set()
    heard = EncodedEvent.receive(VALID[1], max_bytes=LIMIT)
    client.hset(Keys(prefix).event(heard.id), "field", "value")
    for _ in range(400):
        (restored,) = restore_sources(Storage(client, settings), [heard], Admission(settings))
        event = restored.event
        assert Event.decode(restored.data, max_bytes=LIMIT) == event
        assert event.model_copy(update={"source": None}) == heard.event
        sources.add(event.source)
        client.set(Keys(prefix).event(heard.id), mutated(chance).replace(b"RedisEventBus", b"real"), ex=3600)
    assert {None, "real"} <= sources

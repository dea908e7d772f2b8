"""Encoded events: reading them without full validation gives the same events and the same refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.errors import InvalidEvent
from bridge.events.encoded import EncodedEvent
from bridge.events.event import _FROM_WIRE
from bridge.events.validation import NO_TYPE
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.strategies import JSON, TEXT, examples
from tests.support.waiting import eventually

LIMIT = 1024 * 1024

IDS = st.from_regex(r"[A-Za-z0-9._:@+-]{1,20}", fullmatch=True)
TYPES = st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,2}", fullmatch=True).filter(lambda name: name not in NO_TYPE)
METADATA = st.none() | st.dictionaries(TEXT, JSON, max_size=3)
METADATA |= st.fixed_dictionaries({"hops": JSON, "replay": JSON | st.fixed_dictionaries({"name": TEXT})})
FIELDS = st.fixed_dictionaries(
    {"id": IDS, "type": TYPES, "timestamp": st.integers(0, 2**53) | JSON},
    optional={
        "payload": JSON,
        "source": st.none() | TEXT,
        "metadata": METADATA,
        "correlationId": st.none() | TEXT,
    },
)
#: Fields some of which the fast path leaves to full validation.
ODD_FIELDS = st.dictionaries(
    st.sampled_from(["id", "type", "payload", "timestamp", "source", "metadata", "correlationId", "eventId", "more"]),
    JSON | IDS | METADATA,
).map(lambda odd: {"id": "i"} | odd)  # without one, each event would get a random id


def outcome(make: Any) -> Any:
    """Return all visible properties of an event, or the reason for which it is refused."""
    try:
        event = make()
    except InvalidEvent as error:
        return error.reason, error.field
    return repr([event.to_dict(), event.encode(), event.digest, event.replay, event.hops, event.cause, event.timestamp])


@settings(max_examples=examples(300), deadline=None)
@given(fields=FIELDS | ODD_FIELDS)
def test_the_fast_way_is_full_validation(fields: dict[str, Any]) -> None:
    """The fast path for events of task messages gives the same event or refusal as full validation."""
    before = repr(fields)
    assert outcome(lambda: Event.from_dict(fields)) == outcome(
        lambda: Event.model_validate(dict(fields), context=_FROM_WIRE)
    )
    assert repr(fields) == before


def test_the_fast_way_sets_what_pydantic_sets() -> None:
    """The fast path sets all attributes that pydantic sets; this fails if a later pydantic adds one."""
    fast = Event.from_dict({"id": "i", "type": "a.b", "timestamp": 1, "payload": {"x": 1}})
    constructed = Event.model_construct(set(vars(fast)), **vars(fast))
    assert Event.__slots__ == ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
    for name in Event.__slots__:
        assert getattr(fast, name) == getattr(constructed, name)


@settings(max_examples=examples(300), deadline=None)
@given(fields=FIELDS)
def test_equal_however_they_were_made(fields: dict[str, Any]) -> None:
    """An event of the fast path equals a validated one, also after copying and deriving events from it."""
    try:
        validated = Event.model_validate(dict(fields), context=_FROM_WIRE)
    except InvalidEvent:
        return
    fast = Event.from_dict(fields)
    assert fast == validated
    assert hash(fast) == hash(validated)
    assert repr(fast.model_dump(by_alias=True)) == repr(validated.model_dump(by_alias=True))
    assert fast.model_copy(update={"source": "s"}) == validated.model_copy(update={"source": "s"})
    assert fast.child("c", id="c", timestamp=1) == validated.child("c", id="c", timestamp=1)


@settings(max_examples=examples(300), deadline=None)
@given(id=IDS, type=TYPES, payload=JSON, source=st.none() | TEXT, metadata=METADATA, more=JSON)
def test_what_was_published_is_read_back(**fields: Any) -> None:
    """An event of the journal equals the decoded event, and a task gets its JSON unchanged."""
    try:
        data = Event(**fields).encode()
    except InvalidEvent:
        return  # for example an object with only __type__ and __value__
    stored, decoded = EncodedEvent.read(data), Event.decode(data, max_bytes=LIMIT)
    assert stored.event == decoded
    assert (stored.id, stored.type, stored.replay, stored.data) == (decoded.id, decoded.type, decoded.replay, data)
    assert repr(stored) == repr(decoded)


def with_payload(text: bytes) -> bytes:
    return b'{"id":"i","type":"a","timestamp":1,"payload":%b}' % text


ODD: dict[str, bytes] = {
    "aliases": b'{"eventId":"i","eventType":"a.b","payload":1}',
    "alias with a null": b'{"id":null,"eventId":"i","type":"a","timestamp":1}',
    "alias with a name": b'{"id":"i","eventId":"j","type":"a","timestamp":1,"eventType":"b"}',
    "other case of a name": b'{"id":"i","type":"a","timestamp":1,"correlation_id":"c"}',
    "integer id": b'{"id":5,"type":"a","timestamp":1}',
    "last id wins": b'{"id":"i","type":"a","timestamp":1,"id":"j","type":"b"}',
    "last id is an integer": b'{"id":"i","type":"a","timestamp":1,"id":5}',
    "escaped name": b'{"\\u0069d":"i","type":"a","timestamp":1}',
    "escaped id": b'{"id":"\\u0069","type":"a","timestamp":1}',
    "white space before": b' \n{"id":"i","type":"a","timestamp":1}',
    "white space after": b'{"id":"i","type":"a","timestamp":1}\r\n ',
    "white space within": b'{ "id" : "i" , "type" : "a" , "timestamp" : 1 }',
    "white space further in": b'{"id":"i" ,\t"type":"a",\n"timestamp":1}',
    "unknown fields": b'{"id":"i","type":"a","timestamp":1,"":0,"Id":1,"vendor":{"x":[1]}}',
    "nulls": b'{"id":"i","type":"a","timestamp":1,"source":null,"metadata":null,"correlationId":null}',
    "no timestamp": b'{"id":"i","type":"a"}',
    "timestamps of other types": b'{"id":"i","type":"a","timestamp":true}',
    "fractions": b'{"id":"i","type":"a","timestamp":1.0}',
    "metadata of another type": b'{"id":"i","type":"a","timestamp":1,"metadata":[1]}',
    "source of another type": b'{"id":"i","type":"a","timestamp":1,"source":1}',
    "a replay": b'{"id":"i","type":"a","timestamp":1,"metadata":{"replay":{"name":"r"}}}',
    "a replay of another form": b'{"id":"i","type":"a","timestamp":1,"metadata":{"replay":"r"}}',
    "no id": b'{"type":"a","timestamp":1}',
    "null id": b'{"id":null,"type":"a","timestamp":1}',
    "no type": b'{"id":"i","timestamp":1}',
    "unusable id": b'{"id":"a b","type":"a","timestamp":1}',
    "empty id": b'{"id":"","type":"a","timestamp":1}',
    "unusable type": b'{"id":"i","type":"a..b","timestamp":1}',
    "type of no event": b'{"id":"i","type":"undefined","timestamp":1}',
    "type like a key of the bridge": b'{"id":"i","type":"journal","timestamp":1}',
    "marker of the TypeScript bus": b'{"id":"i","type":"a","timestamp":1,"source":"RedisEventBus"}',
    "CloudEvent": b'{"id":"i","type":"a","specversion":"1.0","source":"s","data":1,"time":"2026-01-02T03:04:05Z"}',
    "CloudEvent with a timestamp": b'{"id":"i","type":"a","timestamp":1,"specversion":"1.0","data":1}',
    "CloudEvent with binary data": b'{"id":"i","type":"a","timestamp":1,"specversion":"1.0","data_base64":"AA=="}',
    "integer of JavaScript": b'{"id":"i","type":"a","timestamp":1,"payload":999999999999999999999}',
    "not JSON": b"{'id':1}",
    "more after it": b'{"id":"i","type":"a","timestamp":1}x',
    "cut off": b'{"id":"i","type":"a","timest',
    "not an object": b'["id"]',
    "a string": b'"id"',
    "nothing": b"",
    "blanks": b" \n",
    "byte order mark": b'\xef\xbb\xbf{"id":"i","type":"a","timestamp":1}',
    "not UTF-8": with_payload(b'"\xff"'),
    "a surrogate in UTF-8": with_payload(b'"\xed\xa0\x80"'),
    "half a surrogate pair": with_payload(b'"\\ud800"'),
    "half a pair in a name": with_payload(b'{"\\udfff":1}'),
    "a surrogate pair": with_payload(b'"\\ud83d\\ude00"'),
    "NaN": with_payload(b"NaN"),
    "Infinity": with_payload(b"[-Infinity]"),
    "digits without end": with_payload(b"9" * 5000),
    "control character": with_payload(b'"a\nb"'),
    "null character": with_payload(b'"\\u0000"'),
    "unknown escape": with_payload(b'"\\x"'),
    "leading zero": with_payload(b"01"),
    "minus zero": with_payload(b"[-0,-0.0,1E5,1e-500]"),
    "duplicate names": with_payload(b'{"a":1,"a":2}'),
    "deepest": with_payload(b"[" * 63 + b"]" * 63),
    "too deep for the parser": with_payload(b"[" * 100_000),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_odd_entries(data: bytes) -> None:
    """An entry of another program is read as decoding reads it, and a task gets the same event or refusal."""
    decoded = outcome(lambda: Event.decode(data, max_bytes=LIMIT))
    assert outcome(lambda: EncodedEvent.read(data).event) == decoded
    if isinstance(decoded, str):
        stored = EncodedEvent.read(data)
        assert outcome(lambda: Event.from_dict(json.loads(stored.data))) == decoded
        assert (stored.id, stored.type, stored.replay) == (stored.event.id, stored.event.type, stored.event.replay)
    else:
        with pytest.raises(InvalidEvent):  # immediately, not on access to the event
            EncodedEvent.read(data)


#: Values that no bus and no subscriber appends. Reading the journal does not check numbers.
NUMBERS = {"integer_range": b"1000000000000000000001", "non_finite": b"1e999"}
CONTAINERS = {
    "reserved": b'{"__type__":"x","__value__":1}',
    "reserved, escaped": b'{"\\u005f_type__":"x","__value__":1}',
    "depth": b"[" * 64 + b"]" * 64,
}


@pytest.mark.parametrize("reason", CONTAINERS)
def test_containers_that_no_task_gets(reason: str) -> None:
    """An object that Celery would convert, and deep nesting, are refused in entries like in decoding."""
    with pytest.raises(InvalidEvent) as caught:
        EncodedEvent.read(with_payload(CONTAINERS[reason]))
    assert caught.value.reason == reason.partition(",")[0]


@pytest.mark.parametrize("reason", NUMBERS)
def test_what_the_journal_cannot_hold(reason: str) -> None:
    """A value that must not be in the journal is refused like in decoding when the event is accessed."""
    data = with_payload(NUMBERS[reason])
    stored = EncodedEvent.read(data)
    assert (stored.id, stored.type, stored.data) == ("i", "a", data)
    with pytest.raises(InvalidEvent) as caught:
        _ = stored.event
    assert caught.value.reason == reason


@pytest.mark.parametrize("handler", ["t.chosen", "t.picky"])
@pytest.mark.parametrize("reason", NUMBERS)
def test_what_the_journal_cannot_hold_stops_nothing(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    settings: BridgeSettings,
    queues: Queues,
    handler: str,
    reason: str,
) -> None:
    """If a handler needs such an event, it becomes a dead letter, and other events are dispatched."""
    register_handlers("t.all", handler)
    client.xadd(Keys(settings.channel_prefix).journal, {"event": with_payload(NUMBERS[reason])})
    subscriber = start_subscriber()
    with EventBus(settings) as bus:
        bus.publish("a.b", {"name": "x", "yes": True}, id="good")
    eventually(lambda: queues.tasks()[f"{handler} a.b good"], "the valid event is dispatched", 5)
    # Messages that Celery sends precede the dead letters of their batch.
    eventually(lambda: Storage(client, settings).dead_letters.latest(10), "the invalid event is a dead letter")
    assert "errors" not in subscriber.info()


class Panic(BaseException):
    """As pydantic's parser raises it; the real class cannot be imported."""

    __module__ = "pyo3_runtime"


@pytest.mark.parametrize("place", ["bridge.events.encoded.from_json", "bridge.events.event.Event.model_validate"])
def test_a_parser_that_panics(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic of the parser rejects the message, as any other invalid JSON, and ends no thread."""

    def panic(*_: Any, **__: Any) -> Any:
        raise Panic("called unwrap() on a None value")

    monkeypatch.setattr(place, panic)
    odd = b'{"type":"a.b","id":"x","timestamp":"now"}'
    for read in (EncodedEvent.read, lambda data: EncodedEvent.receive(data, max_bytes=LIMIT)):
        if place.endswith("from_json"):
            assert read(odd).id == "x"
        else:
            with pytest.raises(InvalidEvent, match="internal error"):
                read(odd)


def test_other_interrupts_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt of the program is not taken for a panic."""

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("bridge.events.encoded.from_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        EncodedEvent.read(b"{}")

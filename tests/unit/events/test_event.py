"""The event and its wire format: which values are accepted, and for which reasons others are refused."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from pydantic import BaseModel, Field

from bridge.errors import InvalidEvent
from bridge.events.event import Event, caused_by
from bridge.events.wire import MAX_DEPTH, MAX_INT
from tests.support.strategies import JSON, examples

LIMIT = 1024 * 1024
NAN, INF = float("nan"), float("inf")
FULL = {
    "id": "e-1",
    "type": "dream.created",
    "payload": {"dreamId": 7, "tags": ["a", "ü", "\U0001f319"], "deep": {"none": None, "yes": True, "x": 1.5}},
    "timestamp": 1_760_000_000_000,
    "source": "dreams",
    "metadata": {"hops": 2, "causationId": "e-0"},
    "correlationId": "c-1",
    "vendorField": [1, {"two": 2}],
}


class Colour(str, enum.Enum):  # noqa: UP042  # a common form, whose str() is not its value
    RED = "red"


class Dream(BaseModel):
    dream_id: int = Field(alias="dreamId")
    parts: list[Dream] = []


@dataclasses.dataclass
class Node:
    next: Any = None
    weight: float = 1.0


def decode(data: bytes, channel_type: str | None = None) -> Event:
    return Event.decode(data, max_bytes=LIMIT, channel_type=channel_type)


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 0


def ring(node: Any, add: Any) -> Any:
    add(node, node)
    return node


def flat(table: dict[tuple[str, str], list[Any]]) -> list[Any]:
    """Return one test case for each value, with the reason and field for which it is refused."""
    return [
        pytest.param(value, *expected, id=f"{expected[0]}-{expected[1][:20]}-{index}")
        for expected, values in table.items()
        for index, value in enumerate(values)
    ]


def test_round_trip() -> None:
    """Known and unknown fields are preserved, in the order of the wire format."""
    event = Event(**FULL)
    assert list(json.loads(event.encode()).items()) == list(FULL.items())
    assert decode(event.encode()) == event == Event.from_dict(event.to_dict()) == Event.model_validate(event)
    assert len({event, decode(event.encode())}) == 1


def test_defaults() -> None:
    """A new event has a random UUID and the current time; absent optional fields are not sent."""
    first, second = Event(type="a"), Event(type="a")
    assert uuid.UUID(first.id) != uuid.UUID(second.id)
    assert list(first.to_dict()) == ["id", "type", "payload", "timestamp"]
    assert first.occurred_at is not None
    assert abs(datetime.now(UTC) - first.occurred_at) < timedelta(1)


def test_encoding_is_compact_and_limited() -> None:
    """The encoding is compact UTF-8, and an event over the limit is refused with the name of its largest field."""
    event = Event(type="a", id="i", timestamp=1, payload={"k": "ü\n"}, note="short")
    data = event.encode()
    assert data == '{"id":"i","type":"a","payload":{"k":"ü\\n"},"timestamp":1,"note":"short"}'.encode()
    assert event.encode(max_bytes=len(data)) == data
    with pytest.raises(InvalidEvent) as caught:
        event.encode(max_bytes=len(data) - 1)
    assert (caught.value.reason, caught.value.field) == ("size", "payload")


NESTED_DREAM = {"dreamId": 1, "parts": [{"dreamId": 2, "parts": []}]}
CONVERTED = {
    "model by alias": (Dream(dreamId=1, parts=[Dream(dreamId=2)]), NESTED_DREAM),
    "datetime": (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
    "date and span": ([date(2026, 1, 2), timedelta(1)], ["2026-01-02", "P1D"]),
    "uuid and decimal": ([uuid.UUID(int=1), Decimal("1.10")], ["00000000-0000-0000-0000-000000000001", "1.10"]),
    "int enum": (HTTPStatus.OK, 200),
    "str enum": ({Colour.RED: Colour.RED}, {"red": "red"}),
    "dataclass": (Node(Node()), {"next": {"next": None, "weight": 1.0}, "weight": 1.0}),
    "tuple and set": (({"a": (1,)}, frozenset({"x"})), [{"a": [1]}, ["x"]]),
    "bytes of text": (b"abc", "abc"),
    "largest integers": ([-MAX_INT, MAX_INT], [-MAX_INT, MAX_INT]),
    "control characters": ("a\0b\n", "a\0b\n"),
    "deepest": (nested(MAX_DEPTH - 2), nested(MAX_DEPTH - 2)),
}


@pytest.mark.parametrize(("value", "expected"), CONVERTED.values(), ids=list(CONVERTED))
def test_conversion(value: Any, expected: Any) -> None:
    """Python values are converted to plain JSON immediately, and encoding preserves them."""
    event = Event(type="a", payload=value, metadata={"k": value})
    assert repr(event.payload) == repr(expected)  # repr: 1, 1.0, True and enum members differ
    assert repr(decode(event.encode()).to_dict()) == repr(event.to_dict())


BAD_IDS = ["", "x" * 201, "{b}", "a*", "a b", "a\n", "a\0", "ä", "a/b", 5, None]
BAD_TYPES = ["", "x" * 201, "a b", "a.*", ".a", "a.", "a..b", "a\n", "ä", 5, None]
REFUSED: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("non_finite", "payload.a[1]"): [{"payload": {"a": [0, value]}} for value in (NAN, INF, -INF)],
    ("non_finite", "metadata.x.weight"): [{"metadata": {"x": Node(weight=NAN)}}],
    ("non_finite", "extra"): [{"extra": NAN}],
    ("integer_range", "payload[0]"): [{"payload": [MAX_INT + 1]}, {"payload": [-MAX_INT - 1]}],
    ("depth", "payload" + "[0]" * 63): [{"payload": nested(64)}, {"payload": ring([], list.append)}],
    ("json", "payload"): [
        {"payload": ring(Node(), lambda node, part: setattr(node, "next", part))},
        {"payload": ring(Dream(dreamId=1), lambda dream, part: dream.parts.append(part))},
        {"payload": b"\xff"},
        {"payload": {1: 2}},
    ],
    ("json", "payload.o"): [{"payload": {"o": object()}}],
    ("surrogate", "payload[0]"): [{"payload": ["\ud800"]}, {"payload": [{"\udfff": 1}]}],
    ("id", "id"): [{"id": value} for value in BAD_IDS],
    ("type", "type"): [{"type": value} for value in BAD_TYPES],
    ("no_type", "type"): [{"type": "undefined"}, {"type": "null"}],
    ("reserved", "payload.a"): [{"payload": {"a": {"__type__": "x", "__value__": 1}}}],
    ("source", "source"): [{"source": 1}],
    ("metadata", "metadata"): [{"metadata": [1]}],
    ("correlationId", "correlationId"): [{"correlation_id": 1}, {"correlationId": 1}],
}


@pytest.mark.parametrize(("fields", "reason", "field"), flat(REFUSED))
def test_refusal(fields: dict[str, Any], reason: str, field: str) -> None:
    """Values that another reader would interpret differently or refuse are refused when the event is created."""
    with pytest.raises(InvalidEvent) as caught:
        Event(**{"type": "a", **fields})
    assert (caught.value.reason, caught.value.field) == (reason, field)


HEAD = b'{"id":"i","type":"a","payload":'
UNREADABLE: dict[tuple[str, str], list[bytes]] = {
    ("empty", ""): [b"", b" \n\t"],
    ("json", ""): [b"{", b"{'id': 1}", b'{"id":"i",}', b'{"id":"i"}x', b'{"id":"\n"}', b"{\0}", b'{"id":01}', HEAD],
    ("not_object", ""): [b"null", b'"x"', b"[1]", b"3", b"true"],
    ("encoding", ""): [b'{"id":"\xff"}', b"\xef\xbb\xbf{}", '{"id":"i"}'.encode("utf-16"), b'"\xed\xa0\x80"'],
    ("non_finite", ""): [HEAD + value + b"}" for value in (b"NaN", b"-Infinity", b"1e999", b"[-1e999]")],
    ("integer_range", ""): [
        HEAD + value + b"}" for value in (b"9" * 5000, b"-" + b"9" * 5000, b"1000000000000000000001")
    ],
    ("depth", ""): [HEAD + b"[" * n + b"]" * n + b"}" for n in (64, 100, 200_000)] + [b'{"a":' * 200_000],
    ("surrogate", ""): [HEAD + b'"\\ud800","signature":"k:%b"}' % (b"0" * 64)],
    ("size", ""): [HEAD + b'"' + b"x" * LIMIT + b'"}'],
    ("no_id", "id"): [b"{}", b'{"id":null,"type":"a"}'],
    ("id", "id"): [HEAD + b'1,"id":' + value + b"}" for value in (b'""', b"1.5", b"true", b"[1]", b"{}", b'"a b"')],
    ("type", "type"): [b'{"id":"i","type":1}', b'{"id":"i","type":""}'],
    ("no_type", "type"): [b'{"id":"i"}', b'{"id":"i","type":null}', b'{"id":"i","type":"undefined","timestamp":1}'],
    ("reserved", ""): [HEAD + b'[{"%s":"x","__value__":1}]}' % name for name in (b"__type__", rb"\u005f_type__")],
    ("metadata", "metadata"): [HEAD + b'1,"metadata":"x"}'],
}


@pytest.mark.parametrize(("data", "reason", "field"), flat(UNREADABLE))
def test_unreadable(data: bytes, reason: str, field: str) -> None:
    """Every invalid message is refused with a reason, and no error of a parser is raised."""
    with pytest.raises(InvalidEvent) as caught:
        decode(data)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_depth_at_the_limit_of_the_parser() -> None:
    """Nesting near the limit of the parser is refused for its depth, even if it contains surrogate pairs."""
    for levels in range(sys.getrecursionlimit() - 250, sys.getrecursionlimit() + 1):
        with pytest.raises(InvalidEvent, match="depth"):
            decode(HEAD + b"[" * levels + rb'"\ud83d\ude00"' + b"]" * levels + b"}")


def test_lenient_reading() -> None:
    """Aliases, integer ids, types of channels and duplicate names are accepted; a missing time stays missing."""
    event = decode(b'{"eventId":5,"eventType":"a","payload":1,"payload":"\\ud83d\\ude00"}')
    assert event.to_dict() == {"id": "5", "type": "a", "payload": "\U0001f600"}
    assert (event.timestamp, event.occurred_at) == (None, None)
    assert Event.from_dict(event.to_dict()).timestamp is Event[str].model_validate(event).timestamp is None
    assert decode(b'{"id":"i"}', "b.c").type == decode(b'{"id":"i","type":"b.c"}', "b.c").type == "b.c"
    event = decode(b'{"id":null,"eventId":"i","type":"a","correlationId":null,"correlation_id":"c"}')
    assert event.to_dict() == {"id": "i", "type": "a", "payload": None, "correlationId": "c"}
    with pytest.raises(InvalidEvent, match=r"^type: .*channel_mismatch"):
        decode(b'{"id":"i","type":"b"}', "b.c")


@pytest.mark.parametrize("raw", ["0", "-5", "1.5", '"2026-01-02"', '"2026-13-02"', '"monday"', "true", "1e300"])
def test_foreign_timestamps_are_kept(raw: str) -> None:
    """A timestamp that is not a number of milliseconds is passed on unchanged."""
    event = decode(HEAD + b'1,"timestamp":%s}' % raw.encode())
    assert repr(decode(event.encode()).timestamp) == repr(json.loads(raw))
    assert (event.occurred_at is None) == (raw in ('"2026-13-02"', '"monday"', "true", "1e300"))


def test_typed_payload() -> None:
    """``Event[Model]`` has the payload as the model, sends it as JSON, and names an invalid part by its path."""
    event = Event[Dream].from_dict({"id": "i", "type": "a", "payload": {"dreamId": 5}})
    assert event.payload.dream_id == 5
    assert event.to_dict()["payload"] == {"dreamId": 5, "parts": []}
    assert Event[Dream].model_validate(Event.from_dict(event.to_dict())).payload == event.payload
    with pytest.raises(InvalidEvent) as caught:
        Event[Dream](type="a", payload={"dreamId": 1, "parts": [{"dreamId": "x"}]})
    assert (caught.value.reason, caught.value.field) == ("payload", "payload.parts.0.dreamId")


def test_typed_payload_of_any_type_encodes() -> None:
    """An event can be encoded whatever the type of its payload is."""
    for model, payload in [(int, 3), (list[Dream], [NESTED_DREAM]), (date, "2026-01-02")]:
        assert decode(Event[model](type="a", payload=payload).encode()).payload == payload


def test_child() -> None:
    """The id of the first event is the correlation id of its chain, and hops are counted from there."""
    first = caused_by(None, "a", id="e-1")
    second = first.child("b", {"x": 1}, source="me", metadata={"note": "n"})
    third = second.child("c", id="e-3")
    assert (first.metadata, first.correlation_id) == (None, None)
    assert (second.correlation_id, third.correlation_id) == ("e-1", "e-1")
    assert second.metadata == {"causationId": "e-1", "hops": 1, "note": "n"}
    assert third.metadata == {"causationId": second.id, "hops": 2}
    assert (second.type, second.payload, second.source, third.id, third.hops) == ("b", {"x": 1}, "me", "e-3", 2)


def test_child_takes_what_is_given() -> None:
    """A given correlation id takes precedence, under either name, and is sent once."""
    for name in ("correlation_id", "correlationId"):
        child = Event(type="a").child("b", **{name: "mine"})
        assert (child.correlation_id, child.model_extra) == ("mine", {})


def test_foreign_hops_count_as_zero() -> None:
    """If the hops of another program are not a valid count, counting starts at zero."""
    for hops in (None, "3", 2.0, True, -1, [], {}):
        assert Event(type="a", metadata={"hops": hops}).child("b").hops == 1, hops


def test_the_first_event_of_a_chain_has_the_id_of_the_chain_as_well() -> None:
    """All events of a chain have one chain_id: the correlation id, or the id of the first event."""
    first = Event(type="a.b", id="first")
    second = first.child("c.d", id="second")
    assert {one.chain_id for one in (first, second, second.child("e.f"))} == {"first"}
    named = Event(type="a.b", id="first", correlation_id="order-1")
    assert {one.chain_id for one in (named, named.child("c.d"))} == {"order-1"}
    long = Event(type="a.b", id="first", correlation_id="x" * 201)
    assert {one.chain_id for one in (long, long.child("c.d"))} == {"first"}


def test_repr_and_digest() -> None:
    """repr() shows type and whole id; the digest depends on type and payload, not on key order, source or time."""
    event = Event(type="a.b", id="0123456789abcdef", payload={"x": 1, "y": [1, 2]})
    assert repr(event) == str(event) == "<Event a.b 0123456789abcdef>"
    same = Event(type="a.b", id="j", payload={"y": [1, 2], "x": 1}, source="s", timestamp=1, metadata={}, extra=1)
    assert event.digest == same.digest
    assert event.digest not in {Event(type="b", payload=event.payload).digest, Event(type="a.b", payload=[]).digest}


@settings(max_examples=examples(200), deadline=None)
@given(payload=JSON, extra=JSON)
def test_any_json_survives_the_wire(payload: Any, extra: Any) -> None:
    """Every JSON value is preserved with its types, as payload and in unknown fields."""
    decoded = decode(Event(type="a", payload=payload, extra=extra).encode())
    assert repr([decoded.payload, decoded.model_extra]) == repr([payload, {"extra": extra}])


@pytest.mark.parametrize(("chain", "passed_on"), [("c" * 200, True), ("c" * 201, False), ("c" * 1_000_000, False)])
def test_a_long_correlation_id_is_not_passed_on(chain: str, passed_on: bool) -> None:
    """Any publisher can choose it; a consequence must not fail because of its size."""
    event = Event(type="a.b", id="first", correlation_id=chain)
    assert event.correlation_id == chain
    assert event.child("c.d").correlation_id == (chain if passed_on else "first")

"""What other programs write in place of the wire format."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge import BridgeSettings, Event
from bridge.bus.local import LocalBus
from bridge.errors import InvalidEvent, SettingsError
from bridge.events.encoded import EncodedEvent
from bridge.events.patterns import compile_pattern
from bridge.storage.keys import Keys

CLOUDEVENT = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "/mycontext/subcontext",
    "type": "com.example.someevent",
    "time": "2018-04-05T17:31:00.123Z",
    "subject": "larger-context",
    "datacontenttype": "application/json",
    "dataschema": "https://example.com/schema",
    "data": {"appinfoA": "abc", "appinfoB": 123},
    "correlationid": "chain-1",
    "causationid": "event-0",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "a=1",
    "comexampleextension": 5,
}
MAPPED = {
    "id": "A234-1234-1234",
    "type": "com.example.someevent",
    "payload": {"appinfoA": "abc", "appinfoB": 123},
    "timestamp": 1_522_949_460_123,
    "source": "/mycontext/subcontext",
    "metadata": {
        "causationId": "event-0",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=1",
    },
    "correlationId": "chain-1",
    "specversion": "1.0",
    "subject": "larger-context",
    "datacontenttype": "application/json",
    "dataschema": "https://example.com/schema",
    "comexampleextension": 5,
}


def decode(fields: dict[str, Any], channel_type: str | None = None) -> Event:
    return Event.decode(json.dumps(fields).encode(), max_bytes=10_000, channel_type=channel_type)


def test_a_cloudevent_is_an_event() -> None:
    """Each attribute of a CloudEvent arrives where handlers look for it, and nothing of it is lost."""
    event = decode(CLOUDEVENT)
    assert event.to_dict() == MAPPED
    assert (event.chain_id, event.follows) == ("chain-1", "event-0")
    assert decode(event.to_dict()) == Event.from_dict(CLOUDEVENT) == Event.model_validate(CLOUDEVENT) == event
    assert event.digest == Event(type="com.example.someevent", payload=CLOUDEVENT["data"]).digest, (
        "it is its plain twin"
    )


CLOUDEVENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "without data": ({}, {"payload": None}),
    "null as data": ({"data": None}, {"payload": None}),
    "text": ({"data": "<much/>", "datacontenttype": "application/xml"}, {"payload": "<much/>"}),
    "nanoseconds": ({"time": "2018-04-05T17:31:00.123456789Z"}, {"timestamp": 1_522_949_460_123}),
    "lower case": ({"time": "2018-04-05t17:31:00z"}, {"timestamp": 1_522_949_460_000}),
    "offset": ({"time": "2018-04-05T19:31:00+02:00"}, {"timestamp": 1_522_949_460_000}),
    "before 1970": ({"time": "1969-12-31T23:59:59.5Z"}, {"timestamp": -500}),
    "time of another form": ({"time": "noon"}, {"timestamp": "noon"}),
    "no time": ({}, {"payload": None}),
    "both times": ({"time": "2018-04-05T17:31:00Z", "timestamp": 7}, {"timestamp": 7}),
    "metadata": ({"metadata": {"a": 1}, "causationid": "c"}, {"metadata": {"a": 1, "causationId": "c"}}),
    "payload as well": ({"payload": 1, "data": 2, "time": "x"}, {"payload": 1, "data": 2, "time": "x"}),
}


@pytest.mark.parametrize(("attributes", "expected"), CLOUDEVENTS.values(), ids=list(CLOUDEVENTS))
def test_cloudevents(attributes: dict[str, Any], expected: dict[str, Any]) -> None:
    """CloudEvents are mapped, with each form of data and time; an event that has a payload is not one."""
    fields = decode({"specversion": "1.0", "id": "i", "type": "a.b"} | attributes).to_dict()
    assert fields | expected == fields
    if "payload" not in attributes:
        assert not {"data", "time", "causationid"} & fields.keys()


@pytest.mark.parametrize(
    ("attributes", "field"),
    [({"data_base64": "AAAA"}, "data_base64"), ({"data": 1, "signature": f"k:{'0' * 64}"}, "signature")],
    ids=["binary data", "signed"],
)
def test_cloudevents_that_cannot_be_mapped(attributes: dict[str, Any], field: str) -> None:
    """Binary data, and a signature that mapping would invalidate, are refused with a separate reason."""
    with pytest.raises(InvalidEvent) as caught:
        decode({"specversion": "1.0", "id": "i", "type": "a.b"} | attributes)
    assert (caught.value.reason, caught.value.field) == ("cloudevent", field)


NO_TYPES: dict[str, tuple[dict[str, Any], str | None]] = {
    "undefined": ({}, "undefined"),
    "null": ({"type": None}, "null"),
    "undefined as a text": ({"type": "undefined"}, "undefined"),
    "a key": ({}, None),
}


@pytest.mark.parametrize(("fields", "channel"), NO_TYPES.values(), ids=list(NO_TYPES))
def test_no_event_has_no_type(fields: dict[str, Any], channel: str | None) -> None:
    """An event whose type was undefined in JavaScript is refused, and the reason says so."""
    with pytest.raises(InvalidEvent, match=r"JavaScript|missing") as caught:
        decode({"id": "i"} | fields, channel)
    assert caught.value.reason == "no_type"
    assert (channel is None) or channel in str(caught.value)


def test_an_alias_counts_where_the_channel_names_no_type() -> None:
    """An event with eventType alone, whose channel therefore ends in undefined, has that type; other channels count."""
    assert decode({"id": "i", "eventType": "a.b"}, "undefined").type == "a.b"
    for fields, channel in (({"type": "a.b"}, "undefined"), ({"eventType": "a.b"}, "c.d")):
        with pytest.raises(InvalidEvent, match="channel_mismatch"):
            decode({"id": "i"} | fields, channel)


@pytest.mark.parametrize("form", ["plain", "with more fields", "signed"])
def test_the_marker_of_the_typescript_bus_is_no_source(form: str) -> None:
    """No event has the source RedisEventBus, however it is read; a signed one is passed on as it came."""
    more = {"plain": {}, "with more fields": {"level": 1}, "signed": {"signature": f"k:{'0' * 64}"}}[form]
    data = json.dumps({"id": "i", "type": "a", "timestamp": 1, "source": "RedisEventBus", **more}).encode()
    received = EncodedEvent.receive(data.replace(b": ", b":").replace(b", ", b","), max_bytes=1000)
    assert (received.event.source, received.hides_source) == (None, True)
    assert (b"RedisEventBus" in received.data) is (form == "signed")
    assert Event.from_dict(json.loads(data)).source is EncodedEvent.read(data).event.source is None
    assert Event(type="a", source="RedisEventBus").source is None


HALVES = {r'"\ud83d"': "\ufffd", r'"a\uDE00b"': "a\ufffdb", r'"\ude00\ud83d"': "\ufffd\ufffd"}
HALVES |= {r'{"\ud83d":"\ud83d\ude00"}': {"\ufffd": "\U0001f600"}, r'"\\ud83d\ud83d"': r"\ud83d" + "\ufffd"}


@pytest.mark.parametrize(("text", "payload"), HALVES.items())
def test_half_a_surrogate_pair_is_replaced(text: str, payload: Any) -> None:
    """Text that was cut within an emoji arrives with U+FFFD there, and its digest is that of the repaired event."""
    data = b'{"id":"i","type":"a","payload":%s,"timestamp":1}' % text.encode()
    for read in (EncodedEvent.read, lambda data: EncodedEvent.receive(data, max_bytes=1000)):
        received = read(data)
        assert (received.event.payload, received.repaired) == (payload, True)
        assert received.event.digest == Event(type="a", payload=payload).digest
        assert Event.decode(received.data, max_bytes=1000) == received.event
    whole = EncodedEvent.receive(received.data, max_bytes=1000)
    assert (whole.repaired, whole.data) == (False, received.data)


def test_every_type_is_far_from_the_keys_of_the_bridge() -> None:
    """No channel is a name of the bridge's own, and no pattern for channels or event keys matches such a name."""
    keys = Keys("dreamnet:events:")
    names = [keys.journal, keys.heartbeat, keys.group_settings, keys.journal_start, keys.set_aside]
    names += [keys.seen("i"), keys.done("t"), keys.lease("t"), keys.rate("s"), keys.consequences("i"), keys.aside("x")]
    of_group = (keys.inflight, keys.inflight_tasks, keys.queue_watermarks, keys.fencing_token, keys.handed_over)
    of_group += (keys.leader, keys.dead, keys.dead_size, keys.starts, keys.subscribers)
    names += [key("g") for key in of_group]
    names += [key("g", "x") for key in (keys.skipped, keys.replay, keys.replays, keys.dead_letter_dedup)]
    patterns = [compile_pattern(pattern) for pattern in (keys.all_channels, keys.all_events)]
    assert not [name for name in names for pattern in patterns if pattern.fullmatch(name)]
    assert all(name.startswith("{dreamnet:events:}") for name in names), "a prefix has no braces, and no type either"
    with pytest.raises(SettingsError, match="brace"):
        BridgeSettings.load(channel_prefix="{dreamnet:events:}")
    for event_type in ("heartbeat", "journal", "event:created", "done:step", "dead:g", "seen:i"):
        assert Event(type=event_type).type == event_type
        assert keys.channel(event_type) not in names


MAPPINGS: dict[str, tuple[Any, str]] = {
    "a number": (5, "event"),
    "nothing": (None, "event"),
    "a list": ([{"type": "a"}], "event"),
    "no type": ({"payload": 1}, "type"),
    "an invalid field": ({"type": "a", "metadata": 1}, "metadata"),
    "names that are not strings": ({"type": "a", 5: 1}, "5"),
}


@pytest.mark.parametrize(("event", "reason"), MAPPINGS.values(), ids=list(MAPPINGS))
def test_what_is_no_event_is_not_published(event: Any, reason: str) -> None:
    """What publish() cannot take raises InvalidEvent, never an error from within."""
    with pytest.raises(InvalidEvent) as caught:
        LocalBus().publish(event)
    assert caught.value.reason == reason


def test_a_mapping_is_an_event() -> None:
    """publish() takes an event as a mapping, as in the documentation of the TypeScript bus."""
    heard: list[Event] = []
    bus = LocalBus()
    bus.subscribe("*", heard.append)
    fields = {"id": "event-123", "type": "dream.created", "payload": {"dreamId": "d"}, "timestamp": 1_700_000_000_000}
    assert bus.publish(fields).event.to_dict() == fields
    assert bus.publish(CLOUDEVENT).event.to_dict() == MAPPED
    assert [event.to_dict() for event in heard] == [fields, MAPPED]

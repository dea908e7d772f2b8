"""What other programs write in place of the wire format means the same, whichever way it comes in."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from kombu.utils.json import loads
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.bus.local import LocalBus
from bridge.errors import InvalidEvent
from bridge.operations.history import History
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.cli import invoker, on_bus
from tests.support.outside import SECRETS, Outside, now_ms
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.typescript_shapes import stringified
from tests.support.waiting import eventually

#: Form to the fields that a program writes, and those of them that are different in the event of the handler.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "the marker as the source": ({"source": "RedisEventBus"}, {"source": None}),
    "a type like a key of the bridge": ({"type": "event:created"}, {}),
    "the type of the heartbeat": ({"type": "heartbeat"}, {}),
    "integers of JavaScript": ({"payload": [999_999_999_999_999_934_464, -(10**20)]}, {}),
    "half a pair": ({"payload": {"\ud83c": "\udf19\ud83c"}}, {"payload": {"\ufffd": "\ufffd\ufffd"}}),
    "ISO 8601": ({"timestamp": "2026-01-02T03:04:05.000Z"}, {}),
    "CloudEvent": (
        {"specversion": "1.0", "data": [1], "time": "2026-01-02T03:04:05Z", "payload": None, "timestamp": None},
        {"data": None, "time": None, "payload": [1], "timestamp": 1_767_323_045_000},
    ),
}
#: Form to the fields of an event that is refused on every way in, and the reason.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"type": None}, "no_type"),
    "undefined": ({"type": "undefined"}, "no_type"),
    "binary data": ({"specversion": "1.0", "data_base64": "AA==", "payload": None}, "cloudevent"),
    "a larger integer": ({"payload": 10**21 + 1}, "integer_range"),
    "half a pair, signed": ({"payload": "\ud83c", "signature": f"k:{'0' * 64}"}, "surrogate"),
}


def written(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the event *name*; those that are None are left out."""
    base = {"id": name.replace(" ", "-").replace(",", ""), "type": "a.b", "payload": 1, "timestamp": 7, "source": "s"}
    return {key: value for key, value in (base | changes).items() if value is not None}


def handled(name: str) -> dict[str, Any]:
    """Return the fields that a handler gets."""
    fields, changes = FORMS[name]
    return {"payload": None} | written(name, fields | changes)


@dataclass
class Site:
    """A bus, and programs that write to it."""

    client: Redis
    settings: BridgeSettings
    start: Callable[[], Any]
    queues: Queues

    def __post_init__(self) -> None:
        self.keys = Keys(self.settings.channel_prefix)
        self.letters = Storage(self.client, self.settings).dead_letters

    def events(self) -> dict[str, Any]:
        bodies = [loads(base64.b64decode(message["body"])) for message in self.queues.messages()]
        return {args[0]["id"]: Event.from_dict(args[0]).to_dict() for args, _, _ in bodies}


def broadcast(site: Site, events: list[dict[str, Any]]) -> None:
    site.start()
    for event in events:
        name = site.keys.channel(event.get("type", "undefined"))
        site.client.publish(name, stringified(event))


def key(site: Site, events: list[dict[str, Any]]) -> None:
    for event in events:
        site.client.set(site.keys.event(event["id"]), stringified(event), ex=60)
    site.start()


def entry(site: Site, events: list[dict[str, Any]]) -> None:
    for event in events:
        fields = {"id": event["id"], "type": event.get("type", ""), "event": stringified(event)}
        site.client.xadd(site.keys.journal, fields)
    site.start()


def replay(site: Site, events: list[dict[str, Any]]) -> None:
    for event in events:
        fields = {"id": event["id"], "type": event.get("type", ""), "event": stringified(event)}
        site.client.xadd(site.keys.journal, fields)
    last(Replays(site.client, site.settings).journal().run(FAST))
    site.client.xtrim(site.keys.journal, maxlen=site.client.xlen(site.keys.journal) - len(events))
    site.start()


def retry(site: Site, events: list[dict[str, Any]]) -> None:
    """Retry dead letters as earlier versions wrote them."""
    site.start()
    for event in events:
        raw, event_id, event_type = stringified(event), event["id"], event.get("type", "")
        letter = DeadLetter("failure", "boom", "journal", raw, len(raw), event_id, event_type)
        site.letters.add(letter)
    last(Replays(site.client, site.settings).dead().run(FAST))


@pytest.fixture
def site(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings, queues: Queues
) -> Site:
    register_handlers("t.all")
    return Site(client, settings, start_subscriber, queues)


@pytest.mark.parametrize("way", [broadcast, key, entry, replay, retry], ids=lambda way: way.__name__)
def test_each_form_means_the_same(site: Site, way: Callable[[Site, list[dict[str, Any]]], None]) -> None:
    """The handler gets the same event from a channel, a key, the journal, a replay and the retry of a dead letter."""
    way(site, [written(name, fields) for name, (fields, _) in FORMS.items()])
    eventually(lambda: site.queues.length() >= len(FORMS), "all are dispatched")
    events = site.events()
    for name in FORMS:
        event = events[handled(name)["id"]]
        if way in (replay, retry):
            assert event.pop("metadata")["replay"]["name"] == "r"
        assert event == handled(name), name


@pytest.mark.parametrize("way", [broadcast, key, entry], ids=lambda way: way.__name__)
def test_what_no_way_lets_in(site: Site, way: Callable[[Site, list[dict[str, Any]]], None]) -> None:
    """Each has one dead letter with its reason, and no task."""
    # Numbers were checked before they were appended, so dispatch does not check them again.
    refused = [row for name, row in REFUSED.items() if way is not entry or name != "a larger integer"]
    way(site, [written(str(number), fields) for number, (fields, _) in enumerate(refused)])
    letters = eventually(lambda: len(found := site.letters.latest(99)) >= len(refused) and found, "all are refused")
    assert sorted(letter.reason for letter in letters) == sorted(reason for _, reason in refused)
    assert site.queues.length() == 0


#: Forms that cannot be signed, and the reasons of their dead letters.
NOT_SIGNED = {"half a pair": "surrogate", "ISO 8601": "signature", "CloudEvent": "cloudevent"}


def test_signed_events(site: Site, outside: Outside) -> None:
    """With a required signature, each form means the same, or is refused if it cannot be signed."""
    site.start(signing_keys=SECRETS, require_signature=["*"])
    at_ms = now_ms()  # older signatures are refused
    for name, (fields, _) in FORMS.items():
        event = written(name, {"timestamp": at_ms} | fields)
        outside.say(outside.sign(stringified(event).decode()), event["type"])
    eventually(lambda: site.queues.length() == len(FORMS) - len(NOT_SIGNED), "those that are signed are dispatched")
    letters = eventually(
        lambda: len(found := site.letters.latest(9)) == len(NOT_SIGNED) and found, "others are refused"
    )
    assert sorted(letter.reason for letter in letters) == sorted(NOT_SIGNED.values())
    events = site.events()
    for name in FORMS.keys() - NOT_SIGNED.keys():
        event = events[handled(name)["id"]]
        assert event.pop("signature").startswith("new:")
        assert event == handled(name) | {"timestamp": at_ms}, name


@pytest.mark.parametrize("kind", ["EventBus", "LocalBus"])
def test_publishing(settings: BridgeSettings, kind: str) -> None:
    """publish() takes each form as a mapping, but for half a pair, and local handlers get what Celery handlers get."""
    heard: list[Event] = []
    bus = EventBus(settings) if kind == "EventBus" else LocalBus()
    bus.subscribe("*", heard.append)
    names = [name for name in FORMS if name != "half a pair"]
    for name in names:
        bus.publish(written(name, FORMS[name][0]))
    default = settings.source if kind == "EventBus" else None
    expected = [handled(name) for name in names]
    assert [event.to_dict() for event in heard] == [
        {name: value for name, value in ({"source": default} | fields).items() if value is not None}
        for fields in expected
    ]
    for name, (fields, reason) in REFUSED.items():
        with pytest.raises(InvalidEvent) as caught:
            bus.publish(written(name, fields))
        assert caught.value.reason == (reason if name != "no type" else "type")
    with pytest.raises(InvalidEvent, match="surrogate"):
        bus.publish(written("half a pair", FORMS["half a pair"][0]))
    if isinstance(bus, EventBus):
        bus.publish(heard[1])  # a handler that passes on what it got
        bus.close()


def test_looking_up(client: Redis, settings: BridgeSettings, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """get_event() and bus get show each form in the key as handlers get it."""
    on_bus(settings, monkeypatch)
    keys, history = Keys(settings.channel_prefix), History(Storage(client, settings))
    with EventBus(settings) as bus:
        for name, (fields, _) in FORMS.items():
            event = written(name, fields)
            client.set(keys.event(event["id"]), stringified(event), ex=60)
            assert bus.get_event(event["id"]).to_dict() == history.event(event["id"]).to_dict() == handled(name)
        for name, (fields, reason) in REFUSED.items():
            event = written(name, fields)
            client.set(keys.event(event["id"]), stringified(event), ex=60)
            with pytest.raises(InvalidEvent) as caught:
                bus.get_event(event["id"])
            assert caught.value.reason == reason
            assert f"[{reason}]" in invoker(app, "get")(event["id"], expect=1).output


def test_the_command_line(site: Site, settings: BridgeSettings, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """bus publish takes the types and numbers of JavaScript, and refuses what every other way refuses."""
    on_bus(settings, monkeypatch)
    publish = invoker(app, "publish")
    publish("heartbeat", "[999999999999999934464]", "--id", "i")
    assert "undefined" in publish("undefined", "1", expect=2).output
    assert "integer_range" in publish("a.b", str(10**21 + 1), expect=2).output
    assert "surrogate" in publish("a.b", r'"\ud83c"', expect=2).output
    site.start()
    eventually(lambda: site.queues.length() == 1, "the event is dispatched")
    assert site.events()["i"]["payload"] == [999_999_999_999_999_934_464]

"""Only handlers get sensitive values: logs, monitors, commands and dead letters do not show them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, InvalidEvent, SettingsError
from bridge.events.redaction import REDACTED, Redaction
from bridge.flower.data import EventData
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import Ended
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import Invoke
from tests.support.replays import FAST, Replays, last
from tests.support.sensitive import PAYLOAD, SECRET, SENSITIVE

PATHS: list[tuple[list[str], Any, Any]] = [
    (["payload.a.b"], {"a": {"b": 1, "c": 2}, "b": 3}, {"a": {"b": REDACTED, "c": 2}, "b": 3}),
    (
        ["payload.*.b"],
        {"a": {"b": 1}, "c": {"b": {"d": 2}}, "b": 3},
        {"a": {"b": REDACTED}, "c": {"b": REDACTED}, "b": 3},
    ),
    (["payload.a"], [{"a": 1}, [{"a": 2}], 3], [{"a": REDACTED}, [{"a": REDACTED}], 3]),
    (["payload.a.*"], {"a": [1, {"b": 2}]}, {"a": [REDACTED, REDACTED]}),
    (["payload.*.b"], [{"b": 1, "c": 2}], [{"b": REDACTED, "c": 2}]),
    (["payload"], [1], REDACTED),
    (["payload.a.b", "payload.a"], {"a": {"b": 1}}, {"a": REDACTED}),
    (["payload.a", "payload.a.b"], {"a": {"b": 1}}, {"a": REDACTED}),
    (["payload.a", "payload.*.c"], {"a": 1, "b": {"c": None}}, {"a": REDACTED, "b": {"c": REDACTED}}),
    (["payload.a.b"], {"a": "b"}, {"a": "b"}),
    (["payload.A"], {"a": 1}, {"a": 1}),
    ([], {"a": 1}, {"a": 1}),
]


@pytest.mark.parametrize(("paths", "payload", "shown"), PATHS)
def test_paths(paths: list[str], payload: Any, shown: Any) -> None:
    """Names are literal, ``*`` is one level, items of lists are included; the event itself is unchanged."""
    event = Event(type="a.b", id="1", payload=payload, metadata={"a": 1})
    before = event.encode()
    redacted = Redaction(paths).event(event)
    assert redacted.payload == shown
    assert redacted.model_copy(update={"payload": payload}) == event
    assert event.encode() == before


def test_other_fields() -> None:
    """Metadata and unknown fields can be redacted too; metadata stays an object."""
    event = Event(type="a.b", id="1", metadata={"token": "x", "hops": 1}, tenant={"key": "k"})
    shown = Redaction(["metadata.token", "tenant.key"]).event(event).to_dict()
    assert (shown["metadata"], shown["tenant"]) == ({"token": REDACTED, "hops": 1}, {"key": REDACTED})
    assert Redaction(["metadata"]).event(event).metadata == {"token": REDACTED, "hops": REDACTED}


@pytest.mark.parametrize("path", ["", "payload.", "payload..a", ".a", "*", "*.a", "id", "type", "source", "timestamp"])
def test_paths_that_are_none(path: str) -> None:
    """An invalid path is refused at start-up, and the error explains what to write instead."""
    with pytest.raises(SettingsError, match=r"redact_paths: .*(payload.*password|begin with payload)"):
        BridgeSettings.load(redact_paths=["payload.a", path])


TEXTS: list[tuple[Any, str, str]] = [
    (SECRET, f"a {SECRET} b", "a [redacted] b"),
    (SECRET, f"'{SECRET.upper()}'", "'[redacted]'"),
    (SECRET, "input_value='ada.lovelace@e...xample.com'", "input_value='[redacted]...[redacted]'"),
    ("Ada", "Ada, Adam and ada-b", "[redacted], Adam and [redacted]-b"),
    ("a\nb", "in 'a\\nb'", "in '[redacted]'"),
    ("ä", "\\u00e4 and ä", "[redacted] and [redacted]"),
    (42, "42 of 420, 4.2", "[redacted] of 420, 4.2"),
    (1234567890123, "at 1234567890123", "at [redacted]"),
    (None, "None of True", "None of True"),
    ("", "nothing", "nothing"),
    ({"x@example.org": [SECRET, 1.5]}, f"x@example.org {SECRET} 1.5", "[redacted] [redacted] [redacted]"),
    ("İstanbul-Street", "İstanbul-Street", "[redacted]"),
    ("x" * 300_000, "short", REDACTED),
]


@pytest.mark.parametrize(("value", "text", "shown"), TEXTS, ids=range(len(TEXTS)))
def test_texts(value: Any, text: str, shown: str) -> None:
    """A text shows no sensitive value, be it whole, in parts, escaped or in capitals; short ones match whole words."""
    redaction = Redaction(["payload.secret"])
    assert redaction.text(text, redaction.values({"payload": {"secret": value, "other": text}})) == shown


@pytest.fixture
def discreet(settings: BridgeSettings) -> BridgeSettings:
    return settings.model_copy(update={"redact_paths": SENSITIVE})


def letter_of(event: Event, reason: str = "failure", **more: Any) -> DeadLetter:
    data = event.encode()
    return DeadLetter.of_event(reason, f"bad {SECRET}", event, data, "t.exact", f"task-{event.id}", **more)


def test_stored_letters(client: Redis, discreet: BridgeSettings, prefix: str) -> None:
    """A stored dead letter has no sensitive value, but the size and the hash of the whole event."""
    letters = Storage(client, discreet).dead_letters
    event = Event(type="dream.created", id="e1", payload=PAYLOAD)
    whole = letter_of(event, traceback=f"ValueError: {SECRET}")
    assert letters.add(whole)
    assert not letters.add(whole)
    ((_, stored),) = client.xrange(Keys(prefix).dead("tests"))
    assert b"lovelace" not in b" ".join(stored.values())
    (letter,) = letters.latest(1)
    assert json.loads(letter.raw)["payload"] == {"user": {"email": REDACTED, "name": "Ada"}, "order": 7}
    assert (letter.detail, letter.traceback) == ("bad [redacted]", "ValueError: [redacted]")
    assert (letter.size, letter.sha256, letter.event_id, letter.redacted) == (whole.size, whole.sha256, "e1", 1)
    with pytest.raises(InvalidEvent, match="bridge_redact_paths"):
        letter.event()


@pytest.mark.parametrize("data", [b"{", b'{"id":"a b","type":"c","payload":{"user":{"email":"ada.lovelace"}}}'])
def test_messages_that_are_no_events_are_not_kept(client: Redis, discreet: BridgeSettings, data: bytes) -> None:
    """For invalid messages and cut-off long ones, only size, hash and reason are stored."""
    letters = Storage(client, discreet).dead_letters
    letters.add(DeadLetter.of_message("json", "not JSON", "somewhere", data))
    letters.add(DeadLetter.of_message("hop_limit", "too long", "here", Event(type="a.b", payload="x" * 5000).encode()))
    for letter in letters.latest(2):
        assert (letter.raw, letter.redacted) == (b"", 1)
        assert letter.size >= len(data)
        assert len(letter.sha256) == 64


def test_without_sensitive_paths_nothing_changes(client: Redis, settings: BridgeSettings, prefix: str) -> None:
    """Without redact_paths, or if none of them matches, the event is stored byte for byte, without further fields."""
    event = Event(type="dream.created", id="e1", payload={"user": {"phone": 1}})
    other = Event(type="dream.created", id="e2", payload=PAYLOAD)
    for paths, one in ((SENSITIVE, event), ([], other)):
        letters = Storage(client, settings.model_copy(update={"redact_paths": paths})).dead_letters
        letters.add(letter_of(one))
        assert letters.latest(1)[0].event() == one
        assert b"redacted" not in client.xrevrange(Keys(prefix).dead("tests"), count=1)[0][1]


@pytest.mark.parametrize("kept_in", ["key", "journal"])
def test_a_retry_takes_the_event_itself(client: Redis, discreet: BridgeSettings, kept_in: str) -> None:
    """A retry reads the whole event from its key or the journal, so the handler gets all of it."""
    bench = Replays(client, discreet)
    event = Event(type="dream.created", id="e1", payload=PAYLOAD)
    with EventBus(discreet) as bus:
        event = bus.publish(event).event
    if kept_in == "journal":
        client.delete(bench.keys.event("e1"))
    bench.letters.add(letter_of(event))
    assert last(bench.dead().run(FAST)).replayed == 1
    (fields,) = bench.replayed()
    assert json.loads(fields[b"event"])["payload"] == PAYLOAD
    assert fields[b"handler"] == b"t.exact"
    assert bench.letters.size().count == 0


def test_a_retry_of_an_expired_event(client: Redis, discreet: BridgeSettings) -> None:
    """If the event has expired or its key holds another one, the dead letter is kept with the reason."""
    bench = Replays(client, discreet)
    for number in range(2):
        bench.letters.add(letter_of(Event(type="dream.created", id=f"e{number}", payload=PAYLOAD)))
    client.set(bench.keys.event("e1"), Event(type="dream.other", id="e1").encode())
    problems = [one.problem for one in bench.dead("p").remaining()]
    assert "the event has expired, and the dead letter holds a redacted copy only" in problems[0]
    assert "another event has its id" in problems[1]
    assert last(bench.dead().run(FAST)).skipped == 2
    assert bench.letters.size().count == 2


def test_refused_events_are_not_retried_by_their_id(client: Redis, discreet: BridgeSettings) -> None:
    """An event that was refused because of a taken id is not replaced by the one with that id."""
    bench = Replays(client, discreet)
    event = Event(type="dream.created", id="e1", payload=PAYLOAD)
    client.set(bench.keys.event("e1"), event.encode())
    bench.letters.add(DeadLetter.of_message("id_conflict", "taken", "there", event.encode()))
    assert [one.event for one in bench.dead().remaining()] == [None]


def test_commands(invoke: Invoke, client: Redis, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`get`, `dead` and `trace` hide sensitive values, even of dead letters stored before redact_paths was set."""
    event = Event(type="dream.created", id="e1", payload=PAYLOAD)
    with EventBus(settings) as bus:
        bus.publish(event)
    letter = replace(letter_of(event), task_id=task_id_for("tests", "e1", "t.exact"))
    Storage(client, settings).dead_letters.end_task_with(letter, Ended())
    before = invoke("get", "e1").output + invoke("dead", "show", "e1").output + invoke("trace", "e1").output
    assert before.count(SECRET) == 4
    monkeypatch.setenv("BRIDGE_REDACT_PATHS", json.dumps(SENSITIVE))
    for line in (["get", "e1"], ["dead", "show", "e1"], ["dead", "list"], ["trace", "e1"]):
        for arguments in (line, [*line, "--json"]):
            output = invoke(*arguments).output
            assert "lovelace" not in output
            assert ("Ada" in output) == (line[0] == "get" or "show" in line or arguments == ["dead", "list", "--json"])
    assert json.loads(invoke("get", "e1", "--json").output)["payload"]["user"] == {"email": REDACTED, "name": "Ada"}


def test_flowers_pages(
    app: Any, settings: BridgeSettings, client: Redis, monkeypatch: pytest.MonkeyPatch, register_handlers
) -> None:
    """The page of an event, the list of dead letters and its search do not contain sensitive values."""
    register_handlers("t.exact")
    monkeypatch.setenv("BRIDGE_REDIS_URL", settings.url)
    app.conf.update(bridge_channel_prefix=settings.channel_prefix, bridge_group="tests", bridge_redact_paths=SENSITIVE)
    event = Event(type="dream.created", id="e1", payload=PAYLOAD)
    with EventBus(settings) as bus:
        bus.publish(event)
    Storage(client, settings).dead_letters.add(letter_of(event))
    data = EventData(app)
    page = data.page("e1")
    assert page
    assert page.event
    assert page.event.payload["user"] == {"email": REDACTED, "name": "Ada"}
    rows = data.dead_letters.page("", 0, 10).rows
    assert [(row["detail"], row["problem"]) for row in rows] == [("bad [redacted]", "")]
    assert data.dead_letters.page("lovelace", 0, 10).matching == 0
    assert data.dead_letters.page("bad", 0, 10).matching == 1

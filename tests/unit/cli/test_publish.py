"""``bus publish`` and ``bus get``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.handlers.handler import registry
from bridge.storage.keys import Keys
from tests.support.apps import Invoke


def journal(client: Redis, settings: BridgeSettings) -> list[dict[str, object]]:
    """Return the events in the journal, oldest first."""
    return [json.loads(fields[b"event"]) for _, fields in client.xrange(Keys(settings.channel_prefix).journal)]


def test_one_event(invoke: Invoke, bus: EventBus) -> None:
    """The command prints the id; type, payload and ids of the event are those of the command line."""
    command = ("publish", "dream.created", '{"text": "I could fly."}', "--id", "e", "--correlation-id", "c")
    assert invoke(*command).stdout == "e\n"
    event = bus.get_event("e")
    assert event is not None
    assert (event.type, event.payload, event.correlation_id) == ("dream.created", {"text": "I could fly."}, "c")
    assert event.source == "tests"


def test_without_a_payload_it_is_null(invoke: Invoke, bus: EventBus) -> None:
    """Without arguments for them, the payload is null and the id is generated and printed."""
    event = bus.get_event(invoke("publish", "dream.created").stdout.strip())
    assert event is not None
    assert event.payload is None


def test_a_repetition_is_said_and_a_conflict_refused(invoke: Invoke, caplog: pytest.LogCaptureFixture) -> None:
    """Publishing the same event again is reported but no error; another event with its id ends with status 1."""
    invoke("publish", "dream.created", "1", "--id", "e")
    again = invoke("publish", "dream.created", "1", "--id", "e")
    assert (again.stdout, again.stderr) == ("e\n", "e was already published; nothing has changed\n")
    other = invoke("publish", "dream.created", "2", "--id", "e", expect=1)
    assert other.stdout == ""
    assert "id e belongs to an event with another type or payload; see bus get e" in other.stderr
    assert caplog.records == []  # it is not logged as well
    told = [json.loads(invoke("publish", "a.b", value, "--id", "x", "--json").stdout) for value in "11"]
    told.append(json.loads(invoke("publish", "a.b", "2", "--id", "x", "--json", expect=1).stdout))
    assert [(one["id"], one["type"], one["duplicate"], one["conflict"]) for one in told] == [
        ("x", "a.b", False, False),
        ("x", "a.b", True, False),
        ("x", "a.b", True, True),
    ]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("publish", "a b"), "'a b' is not words of"),
        (("publish", "a.b", "hello"), "Write a string with its quotes: '\"text\"'"),
        (("publish", "a.b", "[NaN]"), "NaN is not JSON"),
        (("publish", "a.b", "1", "--id", "a b"), "'a b' is not"),
        (("publish", "a.b", "@/nowhere"), "/nowhere: No such file or directory"),
    ],
)
def test_wrong_usage_is_named(invoke: Invoke, command: tuple[str, ...], says: str) -> None:
    """A mistake in the command line ends with status 2 before anything is published."""
    assert says in invoke(*command, expect=2).output


def test_a_payload_a_line(invoke: Invoke, client: Redis, settings: BridgeSettings, tmp_path: Path) -> None:
    """If the first line is a JSON value, each line is a payload, from standard input or a file, also with CRLF."""
    lines = b'{"n": 1}\r\n\n[2]\n"3"\n4'
    result = invoke("publish", "dream.created", "-", input=lines)
    events = journal(client, settings)
    assert [event["payload"] for event in events] == [{"n": 1}, [2], "3", 4]
    assert result.stdout.split() == [event["id"] for event in events]
    assert result.stderr == "4 published\n"
    (tmp_path / "lines").write_bytes(lines)
    told = invoke("publish", "dream.created", f"@{tmp_path}/lines", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in told] == [event["id"] for event in journal(client, settings)[4:]]


def test_one_document(invoke: Invoke, client: Redis, settings: BridgeSettings, tmp_path: Path) -> None:
    """If the first line is not a JSON value, the whole input is one payload, which may have an id."""
    (tmp_path / "dream.json").write_text('{\n  "text": "I\\nflew"\n}\n')
    assert invoke("publish", "dream.created", f"@{tmp_path}/dream.json", "--id", "d").stdout == "d\n"
    assert [event["payload"] for event in journal(client, settings)] == [{"text": "I\nflew"}]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", (), "the input is empty: nothing was published"),
        ("\n \n", (), "the input is empty"),
        ("{\nbad", (), "and its first line is not a JSON value"),
        ("1\n2", ("--id", "e"), "--id expects one document"),
        ("[\n" + "1,\n" * 500_000, (), "nor one JSON document of at most 1048576 bytes"),
    ],
)
def test_input_that_is_nothing(invoke: Invoke, client: Redis, settings: BridgeSettings, text, options, says) -> None:
    """Input without a valid payload ends with status 1, and nothing is published."""
    assert says in invoke("publish", "dream.created", "-", *options, input=text, expect=1).stderr
    assert journal(client, settings) == []


def test_a_bad_line_stops_no_other(invoke: Invoke, client: Redis, settings: BridgeSettings) -> None:
    """Each invalid line is reported with its number, and all other lines are published."""
    most = settings.max_event_bytes
    bad = {2: "{oops", 3: "1e999", 5: '"' + "x" * (most + 9) + '"', 7: '"' + "y" * (most - 10) + '"'}
    lines = [bad.get(number, str(number)) for number in range(1, 9)]
    result = invoke("publish", "dream.created", "-", input="\n".join(lines), expect=1)
    assert [event["payload"] for event in journal(client, settings)] == [1, 4, 6, 8]
    assert [line.partition(":")[0] for line in result.stderr.splitlines()[:-1]] == [f"line {number}" for number in bad]
    assert result.stderr.splitlines()[-1] == "4 published, not published: 4"


# Handlers of the application


VALID = '{"order_id": "o", "lines": ["a"], "total": 1}'


@pytest.fixture
def typed(invoke: Invoke, register_handlers: Callable[..., None]) -> Invoke:
    """Run ``bus ...`` with a handler of order.placed that validates its payload as well."""
    register_handlers("t.typed")
    return invoke


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ordre.placed", VALID), "no handler matches ordre.placed; did you mean order.placed?"),
        (("order.placed", "{}"), "t.typed does not accept it: payload.order_id: Field required"),
        (("order.placed",), "t.typed does not accept it: payload: Input should be"),
    ],
)
def test_what_no_handler_would_take(
    typed: Invoke, client: Redis, settings: BridgeSettings, arguments: tuple[str, ...], says: str
) -> None:
    """A type without handlers and a payload that a handler does not accept cause a warning; --strict refuses both."""
    result = typed("publish", *arguments)
    assert result.stderr.startswith("warning: ")
    assert says in result.stderr
    assert [event["id"] for event in journal(client, settings)] == [result.stdout.strip()]
    refused = typed("publish", *arguments, "--strict", expect=1)
    assert (refused.stdout, len(journal(client, settings))) == ("", 1)
    assert "nothing was published: " in refused.stderr
    assert says in refused.stderr


def test_what_a_handler_takes_is_published_silently(typed: Invoke, client: Redis, settings: BridgeSettings) -> None:
    """A payload that its handlers accept is published without a warning, with and without --strict."""
    for strict in ([], ["--strict"]):
        assert typed("publish", "order.placed", VALID, *strict).stderr == ""
    assert len(journal(client, settings)) == 2


def test_an_application_without_handlers(typed: Invoke) -> None:
    """Without any handler, the warning says how handlers are imported."""
    registry.clear()
    assert "there is no handler: import the modules with @on_event" in typed("publish", "order.placed").stderr


def test_lines_that_no_handler_would_accept(typed: Invoke, client: Redis, settings: BridgeSettings) -> None:
    """The first such line is reported with its problem, and their number; --strict publishes all other lines."""
    lines = "\n".join([VALID, "{}", VALID, "[]", "3"])
    result = typed("publish", "order.placed", "-", input=lines)
    assert result.stderr.splitlines() == [
        "warning: line 2: t.typed does not accept it: payload.order_id: Field required",
        "warning: t.typed does not accept 3 of them",
        "5 published",
    ]
    refused = typed("publish", "order.placed", "-", "--strict", input=lines, expect=1)
    assert [line.partition(": t.typed")[0] for line in refused.stderr.splitlines()] == [
        *("line 2", "line 4", "line 5"),
        "2 published, not published: 3",
    ]
    assert [event["payload"] for event in journal(client, settings)[5:]] == [json.loads(VALID)] * 2
    other = typed("publish", "ordre.placed", "-", "--strict", input=lines, expect=1)
    assert (other.stdout, len(journal(client, settings))) == ("", 7)


def test_an_example(typed: Invoke, client: Redis, settings: BridgeSettings) -> None:
    """--example publishes a payload that the handlers accept, and prints it; an unknown type has no example."""
    result = typed("publish", "--example", "order.placed", "--strict")
    (event,) = journal(client, settings)
    assert event["id"] == result.stdout.strip()
    assert event["payload"] == json.loads(result.stderr.removeprefix("payload: "))
    assert event["payload"] == {"order_id": "text", "lines": ["text"], "total": 1}
    assert "did you mean order.placed?" in typed("publish", "--example", "ordre.placed", expect=1).stderr
    assert "give one of the two" in typed("publish", "--example", "order.placed", "{}", expect=2).stderr
    assert len(journal(client, settings)) == 1


# get


def test_an_event_is_one_line_in_a_pipe(invoke: Invoke, bus: EventBus) -> None:
    """In a pipe and with --json, an event is one line without control characters."""
    bus.publish("dream.created", {"text": "\x9b2J", "n": 1}, id="e")
    (line,) = invoke("get", "e").stdout.splitlines()
    assert json.loads(line)["payload"] == {"text": "\x9b2J", "n": 1}
    assert "\x9b" not in line
    assert invoke("get", "e", "--json").stdout.strip() == line


def test_an_event_whose_key_is_gone_comes_from_the_journal(
    invoke: Invoke, bus: EventBus, client: Redis, settings: BridgeSettings
) -> None:
    """If the event key was evicted, the event is read from the journal."""
    bus.publish("dream.created", 7, id="e")
    client.delete(Keys(settings.channel_prefix).event("e"))
    assert json.loads(invoke("get", "e").stdout)["payload"] == 7


def test_an_event_that_is_not_there_is_named(invoke: Invoke, settings: BridgeSettings) -> None:
    """For an unknown event the status is 1, and the error names the places searched and the next step."""
    output = invoke("get", "e", expect=1).output
    assert f"no event with id e under {settings.channel_prefix} at {settings.redacted_url}" in output
    assert "bus dead list --id e" in output

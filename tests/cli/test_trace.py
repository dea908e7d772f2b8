"""``bus trace``: what came of an event, as a tree that fits a screen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.cli import bus as bus_command
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ended, InFlightTask, Ledger
from tests.cli.conftest import OpenTerminal
from tests.conftest import Processes, eventually

HERE = "tests.watching.app"
#: Type, or handler and state, of the lines of a trip; below each, indented, what came of it.
TRIP = """\
trip.booked
   trip SUCCESS
      trip.flight
         flight SUCCESS
            trip.ticket
               ticket SUCCESS
            trip.ticket
               ticket SKIPPED
      trip.hotel
         hotel FAILURE
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ASKED = "  <- asked for"


@pytest.fixture
def trace(user_app: Celery, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``bus trace ...`` in this process, on the handlers of tests/watching/app.py."""
    monkeypatch.setenv("REDIS_URL", settings.url)
    monkeypatch.setenv("BRIDGE_CHANNEL_PREFIX", settings.channel_prefix)

    def run(*arguments: str, expect: int | None = 0) -> Result:
        result = CliRunner().invoke(bus_command, ["trace", *arguments], obj=SimpleNamespace(app=user_app))
        assert expect is None or result.exit_code == expect, result.output
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


def shape(text: str) -> str:
    """The tree without ids, times and branches."""
    found = ""
    for line in text.splitlines():
        indent, name, rest = re.match(r"([ │├└─]*)(\S+)  (\S+)", line).groups()  # type: ignore[union-attr]  # else fail
        about = f"{name.removeprefix(f'{HERE}.')} {rest}" if rest.isupper() else name
        found += f"{' ' * len(indent)}{about}\n"
    return found


def ids(node: dict[str, Any]) -> Iterator[str]:
    """The ids of the events of a tree in JSON."""
    if "event_id" in node:
        yield node["event_id"]
    for child in [*node["events"], *node.get("tasks", ())]:
        yield from ids(child)


def test_a_real_trip(
    processes: Processes,
    bus: EventBus,
    trace: Callable[..., Result],
    terminal: OpenTerminal,
    client: Redis,
    settings: BridgeSettings,
) -> None:
    """Three levels with fan-out and a failure are shown right, from each id of them, and on one screen."""
    processes.celery("worker", "-n", "w1@test", "-c", "2", name="w1", app=HERE)
    bus.publish("trip.booked", id="trip", correlation_id="journey")
    eventually(lambda: shape(trace("trip", expect=None).stdout) == TRIP, "the whole tree", 30)
    (letter,) = DeadLetters(client, settings).latest(10)
    shown = trace("trip").stdout
    (failed,) = [line for line in shown.splitlines() if "FAILURE" in line]
    assert failed.endswith(f"  celery  failure: RuntimeError: no room  (dead letter {letter.letter_id})")
    assert shown.splitlines()[0].endswith(f"Z{ASKED}")
    assert re.search(r"flight  SUCCESS  \d\.\d{3} s  celery$", shown, re.MULTILINE)

    (line,) = trace("journey", "--json").stdout.splitlines()
    tree = json.loads(line)
    assert (tree["asked"], tree["correlation_id"], tree["hidden"]) == ("journey", "journey", 0)
    all_ids = list(ids(tree["roots"][0]))
    assert len(all_ids) == 5
    assert trace("journey").stdout == shown.replace(ASKED, "")
    for one in all_ids:
        again = trace(one).stdout
        assert again.replace(ASKED, "") == shown.replace(ASKED, "")
        assert [one in line for line in again.splitlines() if ASKED in line] == [True]

    opened = {columns: terminal("bus", "trace", "trip", app=HERE, columns=columns) for columns in (80, 110, 140)}
    for columns, one in opened.items():
        assert one.wait() == 0
        text = COLOURS.sub("", one.text)
        assert sum(-(-len(row) // columns) for row in text.splitlines()) <= 24
        assert all(event_id in text for event_id in [*all_ids, letter.letter_id])
        assert "Z" not in text.splitlines()[0]  # an age takes less room
    assert "\x1b[1;31mFAILURE" in opened[80].text


# What is in Redis without a worker


@pytest.mark.parametrize("unknown", ["unknown", "x" * 10_000, "a b", "\x1b[2J", ""])
def test_an_unknown_id(trace: Callable[..., Result], unknown: str) -> None:
    """Status 1, and one line that says what that means; nothing for a program."""
    for arguments in ([unknown], [unknown, "--json"]):
        result = trace(*arguments, expect=1)
        assert result.stdout == ""
        assert "no event and no chain of that id is retained" in result.stderr
        assert result.stderr.count("\n") == 1
        assert "\x1b" not in result.stderr


def test_states_without_a_worker(
    trace: Callable[..., Result], bus: EventBus, client: Redis, settings: BridgeSettings, keys: Keys
) -> None:
    """Waiting in the journal, sent to its queue, running, about to be tried again."""
    client.xgroup_create(keys.journal, "tests", id="0", mkstream=True)
    bus.publish("sleepy.created", 1, id="first")
    assert shape(trace("first").stdout) == "sleepy.created\n   sleepy WAITING\n"
    (entry,) = client.xreadgroup("tests", "one", {keys.journal: ">"})[0][1]
    client.xack(keys.journal, "tests", entry[0])
    assert shape(trace("first").stdout) == "sleepy.created\n   sleepy SKIPPED\n"
    ledger, task_id = Ledger(client, settings), task_id_for("tests", "first", f"{HERE}.sleepy")
    ledger.sent([], [InFlightTask(f"{HERE}.sleepy", "first", entry[0].decode(), "naps").listed(task_id)])
    assert re.search(r"sleepy  SENT  naps$", trace("first").stdout, re.MULTILINE)
    ledger.begin(task_id, "run", idempotent=True)
    assert re.search(r"sleepy  STARTED  naps$", trace("first").stdout, re.MULTILINE)
    ledger.release(task_id, "run", 0)
    assert re.search(r"sleepy  RETRY  naps$", trace("first").stdout, re.MULTILINE)


def test_an_event_that_is_retained_no_more(
    trace: Callable[..., Result], bus: EventBus, client: Redis, keys: Keys
) -> None:
    """It keeps its place in the chain, and its id."""
    first = bus.publish("other.first", id="first").event
    bus.publish(first.child("other.made", id="below"))
    client.delete(keys.event("first"), keys.journal)
    assert trace("first").stdout.splitlines()[0].startswith("(retained no more)  first")
    assert trace("below").stdout.splitlines()[1].startswith("└─ other.made  below")


EVIL = "\x1b[2J[red]\r\x07\u202e\x9b"
ESCAPED = r"\x1b[2J[red]\r\x07\u202e\x9b"


def test_what_others_wrote_commands_nothing(
    trace: Callable[..., Result], bus: EventBus, client: Redis, settings: BridgeSettings, terminal: OpenTerminal
) -> None:
    """Sources, reasons, details, queues and task ids are escaped, and a long detail is cut; in JSON it is whole."""
    event = Event(type="trip.hotel", id="root", source=EVIL, correlation_id="chain")
    bus.publish(event)
    bus.publish(Event(type="a.b", id="below", metadata={"causationId": "root", "taskId": EVIL}))
    detail = f"first\nsecond {'d' * 900}"
    task_id = task_id_for("tests", "root", f"{HERE}.hotel")
    letter = DeadLetter.of_event(EVIL, detail, event, b"{}", f"{HERE}.hotel", task_id)
    DeadLetters(client, settings).bury(letter, Ended(queue=EVIL))
    at_terminal = terminal("bus", "trace", "root", app=HERE, columns=200)
    assert at_terminal.wait() == 0
    for text in (trace("root").stdout, trace("chain").stdout, COLOURS.sub("", at_terminal.text).replace("\r\n", "\n")):
        assert len(text.splitlines()) == 4
        assert not (set(EVIL) - set(ESCAPED)) & set(text)
        assert text.count(ESCAPED) == 4
        assert r"first\nsecond ddd" in text
        assert 100 < text.count("d") < 300
    (line,) = trace("root", "--json").stdout.splitlines()
    assert line.isascii()
    assert json.loads(line)["roots"][0]["tasks"][0]["detail"] == f"{EVIL}: {detail}"


def test_what_is_not_shown_is_told(trace: Callable[..., Result], bus: EventBus) -> None:
    """Of many consequences, and of many events that begin a chain, a number is left."""
    bus.publish("other.made", id="root")
    bus.publish_many([Event(type="a.b", id=f"n{number}", metadata={"causationId": "root"}) for number in range(70)])
    bus.publish_many([Event(type="a.b", id=f"c{number}", correlation_id="chain") for number in range(80)])
    lines = trace("root").stdout.splitlines()
    assert len(lines) == 1 + 50 + 1
    assert lines[-1] == "└─ 20 more, not shown"
    assert lines[-2].startswith("├─ ")
    lines = trace("chain").stdout.splitlines()
    assert len(lines) == 50 + 1
    assert lines[-1] == "30 more that begin this chain, not shown"
    tree = json.loads(trace("chain", "--json").stdout)
    assert (tree["hidden"], len(tree["roots"])) == (30, 50)
    assert json.loads(trace("root", "--json").stdout)["roots"][0]["hidden"] == 20


def test_redis_that_is_away(trace: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 3, and nothing for a program."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert trace("e", "--json", expect=3).stdout == ""

"""``bus trace`` with a real worker, in a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import Ended
from bridge.storage.storage import Storage
from tests.support.apps import Invoke
from tests.support.cli import invoker, on_bus
from tests.support.processes import Processes
from tests.support.terminal import OpenTerminal
from tests.support.trees import shape
from tests.support.waiting import eventually

HERE = "tests.chains"
#: For each line of a trip: the event type, or the handler and its state. Consequences are indented.
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
ASKED = "  <- this event"


@pytest.fixture
def trace(user_app: Celery, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run ``bus trace ...`` in this process with the handlers of tests/chains.py."""
    on_bus(settings, monkeypatch)
    return invoker(user_app, "trace")


def ids(node: dict[str, Any]) -> Iterator[str]:
    """Yield the ids of the events of a tree in JSON."""
    if "event_id" in node:
        yield node["event_id"]
    for child in [*node["events"], *node.get("tasks", ())]:
        yield from ids(child)


def test_a_real_trip(
    processes: Processes,
    bus: EventBus,
    trace: Invoke,
    terminal: OpenTerminal,
    client: Redis,
    settings: BridgeSettings,
) -> None:
    """Three levels with fan-out and a failure give the same tree for each of their ids, on one screen."""
    processes.celery("worker", "-n", "w1@test", "-c", "2", name="w1", app=HERE)
    bus.publish("trip.booked", id="trip", correlation_id="journey")
    eventually(lambda: shape(trace("trip", expect=None).stdout) == TRIP, "the whole tree is shown", 30)
    (dead_letter,) = Storage(client, settings).dead_letters.latest(10)
    shown = trace("trip").stdout
    (failed,) = [line for line in shown.splitlines() if "FAILURE" in line]
    assert failed.endswith(f"  celery  failure: RuntimeError: no room  (dead letter {dead_letter.dead_letter_id})")
    assert shown.splitlines()[0].endswith(f"Z{ASKED}")
    assert re.search(r"flight  SUCCESS  \d\.\d{3} s  celery$", shown, re.MULTILINE)

    (line,) = trace("journey", "--json").stdout.splitlines()
    tree = json.loads(line)
    assert (tree["requested_id"], tree["correlation_id"], tree["hidden"]) == ("journey", "journey", 0)
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
        assert all(event_id in text for event_id in [*all_ids, dead_letter.dead_letter_id])
        assert "Z" not in text.splitlines()[0]  # an age is shorter than a timestamp
    assert "\x1b[1;31mFAILURE" in opened[80].text


EVIL = "\x1b[2J[red]\r\x07\u202e\x9b"
ESCAPED = r"\x1b[2J[red]\r\x07\u202e\x9b"


def test_what_others_wrote_commands_nothing(
    trace: Invoke, bus: EventBus, client: Redis, settings: BridgeSettings, terminal: OpenTerminal
) -> None:
    """Foreign texts are escaped, and a long detail is shortened; in JSON it is complete."""
    event = Event(type="trip.hotel", id="root", source=EVIL, correlation_id="chain")
    bus.publish(event)
    bus.publish(Event(type="a.b", id="below", metadata={"causationId": "root", "taskId": EVIL}))
    detail = f"first\nsecond {'d' * 900}"
    task_id = task_id_for("tests", "root", f"{HERE}.hotel")
    letter = DeadLetter.of_event(EVIL, detail, event, b"{}", f"{HERE}.hotel", task_id)
    Storage(client, settings).dead_letters.end_task_with(letter, Ended(queue=EVIL))
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

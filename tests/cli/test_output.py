"""What commands print: for a person at a terminal, for a pipe, for programs."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner
from redis import Redis

from bridge import Event, EventBus
from bridge.cli import output
from bridge.storage.dead_letter import DeadLetter
from tests.cli.conftest import OpenTerminal
from tests.replays import Bench

HOSTILE = "[red]x[/red]\x1b[2J\x07"


def printed(function: Callable[..., object], *arguments: object) -> str:
    """What a function prints in a pipe."""
    return CliRunner().invoke(click.Command("c", callback=lambda: function(*arguments))).output


def test_a_table_in_a_pipe_has_a_header_and_is_whole() -> None:
    """Columns are aligned, numbers to the right; nothing is cut, and no cell is empty."""
    columns = [output.Column("NAME"), output.Column("N", right=True), "TEXT"]
    rows = [("a", 5, "x" * 300), ("longer", 123, None)]
    assert printed(output.table, columns, rows).splitlines() == [
        "NAME      N  TEXT",
        "a         5  " + "x" * 300,
        "longer  123  -",
    ]


def test_what_others_wrote_commands_nothing() -> None:
    """Control characters are escaped, and markup of rich is text."""
    for text in (
        printed(output.line, HOSTILE),
        printed(output.table, ["A"], [(HOSTILE,)]),
        printed(output.facts, {"a": HOSTILE}),
        printed(output.note, output.Styled(HOSTILE, "red")),
    ):
        assert r"[red]x[/red]\x1b[2J\x07" in text
    assert "\x1b" not in printed(output.as_json, {"a": HOSTILE, "\x9b": "\u202e"})


@pytest.mark.parametrize(("ms", "text"), [(0, ""), (1795534238046, "2026-11-24T15:30:38Z"), (10**20, str(10**20))])
def test_moments(ms: int, text: str) -> None:
    """ISO 8601 in UTC; 0 is unknown, and what is no time stays a number."""
    assert output.moment(ms) == text


@pytest.mark.parametrize(("age_s", "text"), [(-5, "0s"), (59, "59s"), (61, "1m"), (7300, "2h"), (200_000, "2d")])
def test_ages(age_s: int, text: str) -> None:
    """As short as can be; what is to come is now."""
    assert output.ago(int((time.time() - age_s) * 1000)) == text


def test_a_narrow_terminal_gets_a_line_a_row(terminal: OpenTerminal, bench: Bench) -> None:
    """Texts are cut, and the ids of events left out; a wide one has them."""
    for number in range(3):
        bench.park(number)
    narrow, wide = (terminal("bus", "dead", "list", columns=columns, NO_COLOR="1") for columns in (64, 160))
    assert narrow.wait() == wide.wait() == 0
    assert len(narrow.text.splitlines()) == len(wide.text.splitlines()) == 1 + 3 + 1
    assert "EVENT" not in narrow.text
    assert "EVENT" in wide.text


def test_a_terminal_gets_colours_and_one_table(terminal: OpenTerminal, bench: Bench) -> None:
    """Colours there, none with NO_COLOR or --no-color; what others wrote is neither markup nor a command."""
    event = Event(type="dream.created", id="e", payload=HOSTILE)
    bench.letters.add(DeadLetter.of_event("failure", HOSTILE + "d" * 500, event, event.encode(), "t.exact", "t1"))
    shown = [
        terminal("bus", "dead", "list", columns=200),
        terminal("bus", "dead", "list", columns=200, NO_COLOR="1"),
        terminal("--no-color", "bus", "dead", "list", columns=200),
    ]
    for one in shown:
        assert one.wait() == 0
        assert r"[red]x[/red]\x1b[2J\x07ddd" in one.text
        assert "d" * 200 not in one.text  # cut
        assert "\x07" not in one.text
    assert "\x1b[31mfailure" in shown[0].text
    assert all("\x1b[31m" not in one.text for one in shown[1:])


def test_an_id_stays_whole_on_a_narrow_terminal(terminal: OpenTerminal, bench: Bench) -> None:
    """It is there to be copied."""
    bench.park(1)
    (letter,) = bench.letters.latest(1)
    shown = terminal("bus", "dead", "list", columns=60)
    assert shown.wait() == 0
    assert letter.letter_id in shown.text


@pytest.mark.parametrize(("answer", "left", "status"), [("n\n", 3, 1), ("y\n", 0, 0)])
def test_a_question_at_a_terminal(terminal: OpenTerminal, bench: Bench, answer: str, left: int, status: int) -> None:
    """What destroys asks, and takes no for an answer."""
    for number in range(3):
        bench.park(number)
    asking = terminal("bus", "dead", "purge", "--all")
    asking.shows("Remove 3 dead letters of group tests for good? [y/N]")
    asking.type(answer)
    assert asking.wait() == status
    assert bench.letters.size().letters == left


def test_a_replay_at_a_terminal_has_a_bar(terminal: OpenTerminal, bench: Bench, bus: EventBus, client: Redis) -> None:
    """It moves while the replay runs, and leaves the result."""
    for number in range(16):
        bus.publish("dream.created", id=f"e{number}")
    replay = terminal("bus", "replay", "--all", "--name", "r", "--rate", "20")
    replay.shows("replay r")
    replay.shows("%")
    replay.shows("so far")
    assert replay.wait() == 0
    assert "replay r: 16 replayed" in replay.text.splitlines()[-1]

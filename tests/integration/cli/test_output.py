"""The output of commands in a terminal."""

from __future__ import annotations

import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.storage.dead_letter import DeadLetter
from tests.support.replays import Replays
from tests.support.terminal import OpenTerminal

HOSTILE = "[red]x[/red]\x1b[2J\x07"


def test_a_narrow_terminal_gets_a_line_a_row(terminal: OpenTerminal, replays: Replays) -> None:
    """In a narrow terminal, each row is one line: texts are shortened and event ids omitted."""
    for number in range(3):
        replays.park(number)
    narrow, wide = (terminal("bus", "dead", "list", columns=columns, NO_COLOR="1") for columns in (64, 160))
    assert narrow.wait() == wide.wait() == 0
    assert len(narrow.text.splitlines()) == len(wide.text.splitlines()) == 1 + 3 + 1
    assert "EVENT" not in narrow.text
    assert "EVENT" in wide.text


def test_a_terminal_gets_colours_and_one_table(terminal: OpenTerminal, replays: Replays) -> None:
    """Output is coloured except with NO_COLOR or --no-color; foreign texts contain no markup or escape sequences."""
    event = Event(type="dream.created", id="e", payload=HOSTILE)
    replays.letters.add(DeadLetter.of_event("failure", HOSTILE + "d" * 500, event, event.encode(), "t.exact", "t1"))
    shown = [
        terminal("bus", "dead", "list", columns=200),
        terminal("bus", "dead", "list", columns=200, NO_COLOR="1"),
        terminal("--no-color", "bus", "dead", "list", columns=200),
    ]
    for one in shown:
        assert one.wait() == 0
        assert r"[red]x[/red]\x1b[2J\x07ddd" in one.text
        assert "d" * 200 not in one.text  # shortened
        assert "\x07" not in one.text
    assert "\x1b[31mfailure" in shown[0].text
    assert all("\x1b[31m" not in one.text for one in shown[1:])


def test_an_id_stays_whole_on_a_narrow_terminal(terminal: OpenTerminal, replays: Replays) -> None:
    """A dead-letter id is never shortened, so it can be copied."""
    replays.park(1)
    (letter,) = replays.letters.latest(1)
    shown = terminal("bus", "dead", "list", columns=60)
    assert shown.wait() == 0
    assert letter.dead_letter_id in shown.text


@pytest.mark.parametrize(("answer", "left", "status"), [("n\n", 3, 1), ("y\n", 0, 0)])
def test_a_question_at_a_terminal(
    terminal: OpenTerminal, replays: Replays, answer: str, left: int, status: int
) -> None:
    """A command that deletes data asks for confirmation and does nothing if the answer is no."""
    for number in range(3):
        replays.park(number)
    asking = terminal("bus", "dead", "purge", "--all")
    asking.shows("Permanently delete 3 dead letters of group tests? [y/N]")
    asking.type(answer)
    assert asking.wait() == status
    assert replays.letters.size().count == left


def test_a_replay_at_a_terminal_has_a_bar(
    terminal: OpenTerminal, replays: Replays, bus: EventBus, client: Redis
) -> None:
    """A replay shows a progress bar while it runs, and then its result."""
    for number in range(16):
        bus.publish("dream.created", id=f"e{number}")
    replay = terminal("bus", "replay", "--all", "--name", "r", "--rate", "20", "--yes")
    replay.shows("replay r")
    replay.shows("%")
    replay.shows("so far")
    assert replay.wait() == 0
    assert "replay r: 16 replayed" in replay.text.splitlines()[-1]

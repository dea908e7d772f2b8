"""The output of commands: for people at a terminal, for pipes, for programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from io import StringIO

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from bridge.cli import output, terminal
from bridge.cli.table import Column, Styled

HOSTILE = "[red]x[/red]\x1b[2J\x07"


def printed(function: Callable[..., object], *arguments: object) -> str:
    """Return the output of a function in a pipe."""
    return CliRunner().invoke(click.Command("c", callback=lambda: function(*arguments))).output


def test_a_table_in_a_pipe_has_a_header_and_is_whole() -> None:
    """Columns are aligned, numbers to the right; nothing is shortened, and no cell is empty."""
    columns = [Column("NAME"), Column("N", right=True), "TEXT"]
    rows = [("a", 5, "x" * 300), ("longer", 123, None)]
    assert printed(output.table, columns, rows).splitlines() == [
        "NAME      N  TEXT",
        "a         5  " + "x" * 300,
        "longer  123  -",
    ]


def test_what_others_wrote_commands_nothing() -> None:
    """Control characters are escaped, and rich's markup is printed as text."""
    for text in (
        printed(output.line, HOSTILE),
        printed(output.table, ["A"], [(HOSTILE,)]),
        printed(output.facts, {"a": HOSTILE}),
        printed(output.note, Styled(HOSTILE, "red")),
    ):
        assert r"[red]x[/red]\x1b[2J\x07" in text
    assert "\x1b" not in printed(output.as_json, {"a": HOSTILE, "\x9b": "\u202e"})


@pytest.mark.parametrize(("ms", "text"), [(0, ""), (1795534238046, "2026-11-24T15:30:38Z"), (10**20, str(10**20))])
def test_moments(ms: int, text: str) -> None:
    """Times are ISO 8601 in UTC; 0 is unknown, and an impossible time stays a number."""
    assert output.moment(ms) == text


@pytest.mark.parametrize(("age_s", "text"), [(-5, "0s"), (59, "59s"), (61, "1m"), (7300, "2h"), (200_000, "2d")])
def test_ages(age_s: int, text: str) -> None:
    """Ages have one unit; a time in the future is shown as now."""
    assert output.ago(int((time.time() - age_s) * 1000)) == text


@pytest.mark.parametrize(
    ("width", "shown"), [(80, "…handlers.reserve_stock"), (160, "shop.orders.handlers.reserve_stock")]
)
def test_names_of_handlers_are_cut_at_the_left(monkeypatch: pytest.MonkeyPatch, width: int, shown: str) -> None:
    """On a narrow terminal the end of a dotted name stays, since handlers differ there."""
    stream = StringIO()
    monkeypatch.setattr(terminal, "_new_console", lambda _: Console(width=width, file=stream))
    columns = [Column("ID", whole=True), Column("TYPE", crop=True), Column("HANDLER", dotted=True), Column("DETAIL")]
    row = (
        "1795534238046-3",
        "order.placed",
        "shop.orders.handlers.reserve_stock",
        "payload.lines: Field required " * 2,
    )
    terminal.table(columns, [[Styled(text, "") for text in row]])
    line = stream.getvalue().splitlines()[1]
    assert f"  {shown}  " in line
    assert "1795534238046-3  order.placed" in line

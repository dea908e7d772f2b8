"""Draws the output on a terminal, with rich. ``output.py`` imports this module when there is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import click
from rich.console import Console, ConsoleOptions
from rich.highlighter import JSONHighlighter
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bridge.cli.table import Column, Styled, on_terminal

#: Longest text in a cell of a table; longer ones are cut.
_CELL_CHARS = 160
#: Width that a column needs at most to be useful, and the gap between two columns.
_ROOM_CHARS, _GAP_CHARS = 24, 2
#: Least width of a name that is cut.
_LEAST_CHARS = 12

#: The consoles of the progress bars on the screen; all other output must go through them.
_bars: list[Console] = []


def line(parts: Iterable[Styled], *, err: bool = False, crop: bool = False) -> None:
    """Print one line; with *crop* it is cut to the width of the terminal."""
    console, text = _console(err), Text.assemble(*parts)
    if crop:
        console.print(text, no_wrap=True, overflow="ellipsis")
    else:
        console.print(text, soft_wrap=True)


def table(columns: Sequence[Column], rows: Iterable[Iterable[Styled]]) -> None:
    """Print a table that is at most as wide as the terminal."""
    console = _console()
    cells = [[Text(*part) for part in row] for row in rows]
    shown = _shown(columns, cells, console.width)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for at in shown:
        column = columns[at]
        how: dict[str, Any] = {"justify": "right" if column.right else "left", "overflow": "fold"}
        grid.add_column(column.title, style=column.style, no_wrap=column.whole, **how)
    for row in cells:
        for at in shown:
            row[at].truncate(_CELL_CHARS, overflow="ellipsis")
            if columns[at].crop:
                row[at].no_wrap, row[at].overflow = True, "ellipsis"
        grid.add_row(*(_Dotted(row[at]) if columns[at].dotted else row[at] for at in shown))
    console.print(grid)


class _Dotted:
    """A name that is cut at the left if it is wider than its column."""

    def __init__(self, name: Text) -> None:
        self._name = name

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(len(self._name), _LEAST_CHARS), len(self._name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        excess = len(self._name) - options.max_width
        yield Text("…", self._name.style) + self._name[excess + 1 :] if excess > 0 else self._name


def _shown(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[int]:
    """Return the numbers of the columns to show; spare ones are left out from the right until the others fit."""
    wanted = [
        max([len(column.title), *(min(len(row[at]), _ROOM_CHARS) for row in rows)]) for at, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    for at in reversed(shown.copy()):
        if columns[at].spare and sum(wanted[one] + _GAP_CHARS for one in shown) - _GAP_CHARS > width:
            shown.remove(at)
    return shown


def json_lines(lines: Iterable[str]) -> None:
    """Print lines of indented JSON."""
    for one in lines:
        _console().print(JSONHighlighter()(one), soft_wrap=True)


@contextmanager
def bar(what: str, total: float | None) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on standard error; see :func:`bridge.cli.output.progress`."""
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=30)]
    if total is not None:
        columns.append(TextColumn("{task.percentage:>3.0f} %", markup=False))
    columns.append(TextColumn("{task.fields[text]}", markup=False))
    columns.append(TimeElapsedColumn() if total is None else TimeRemainingColumn())
    # If standard output is a pipe, its data must not appear on the terminal.
    shown = Progress(*columns, console=_console(err=True), transient=True, redirect_stdout=on_terminal())
    with shown:
        _bars.append(shown.console)
        try:
            task = shown.add_task(what, total=total, text="")
            yield lambda done, text: shown.update(task, completed=done, text=text)
        finally:
            _bars.remove(shown.console)


def _console(err: bool = False) -> Console:
    return _bars[-1] if _bars else _new_console(err)


@cache
def _new_console(err: bool) -> Console:
    context = click.get_current_context(silent=True)
    no_color = True if getattr(context and context.obj, "no_color", False) else None  # None: NO_COLOR decides
    return Console(stderr=err, markup=False, highlight=False, emoji=False, no_color=no_color)

"""The output of commands: tables and colours on a terminal, plain lines in a pipe, JSON for programs.

Data goes to standard output, messages to standard error. Texts may come from untrusted publishers: every function here
escapes control characters and treats nothing as markup. ``terminal.py`` draws what a terminal shows.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import click

from bridge.cli.table import Cell, Column, Styled, on_terminal

#: Time until the first progress line, and between two of them, where there is no progress bar.
_FIRST_REPORT_S, _REPORT_S = 0.5, 5.0


Report = Callable[[float, str], None]


def printable(text: str) -> str:
    """Return *text* with its control characters escaped, which a terminal would execute."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def moment(ms: int) -> str:
    """Return a time, ms since the epoch, as ``2026-11-24T10:00:00Z``; empty for 0, which is unknown."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if ms else ""
    except (OverflowError, ValueError, OSError):
        return str(ms)


def ago(ms: int) -> str:
    """Return how long ago a time was, ms since the epoch, in short: ``40s``, ``12m``, ``3h``, ``2d``."""
    age_s = max(0, int(time.time() - ms / 1000))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if age_s >= size:
            return f"{age_s // size}{unit}"
    return f"{age_s}s"


def as_json(value: Any) -> None:
    """Print one line of JSON, in ASCII, so that every encoding can carry it and it holds no control characters."""
    lines([json.dumps(value)])


def document(value: Any) -> None:
    """Print JSON for people: indented and coloured on a terminal, otherwise as :func:`as_json` does."""
    if on_terminal():
        texts = json.dumps(value, indent=2, ensure_ascii=False).splitlines()
        _terminal().json_lines([printable(text) for text in texts])
    else:
        as_json(value)


def line(*parts: Cell, crop: bool = False) -> None:
    """Print one line of data; with *crop* it is cut to one line of the terminal."""
    if not on_terminal():
        click.echo("".join(_plain(part) for part in parts))
        return
    _terminal().line(_safe(parts), crop=crop)


def lines(texts: Iterable[str]) -> None:
    """Print many lines of data in one step; :func:`line` would redraw a progress bar for each of them."""
    text = "\n".join(map(printable, texts))
    if text and on_terminal():
        _terminal().line([Styled(text, "")])
    elif text:
        click.echo(text)


def note(*parts: Cell) -> None:
    """Print one message for the user, on standard error."""
    if on_terminal(err=True):
        _terminal().line(_safe(parts), err=True)
    else:
        click.echo("".join(_plain(part) for part in parts), err=True)


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print a table; all *rows* are held in memory. In a pipe it is aligned and not cut, for ``grep`` and ``awk``.

    Empty cells are ``-`` in a pipe, so that the columns can be counted.
    """
    head = [column if isinstance(column, Column) else Column(column) for column in columns]
    if on_terminal():
        _terminal().table(head, (_safe(row) for row in rows))
        return
    texts = [[column.title for column in head], *([_plain(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = zip(row, widths, head, strict=True)
        click.echo("  ".join(text.rjust(w) if column.right else text.ljust(w) for text, w, column in cells).rstrip())


def facts(pairs: Mapping[str, Cell]) -> None:
    """Print names and values, one per line; names without a value are left out."""
    shown = {name: value for name, value in pairs.items() if _plain(value).strip()}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        line(Styled(f"{name:<{width}}", "bold"), "  ", value)


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Report]:
    """Show progress on standard error: a bar on a terminal, otherwise a line from time to time.

    Arguments:
        what: What is in progress, in a word or two.
        total: The amount that means completion; None if it is unknown.

    Yields:
        A function to call after each step with the amount done so far and a text with figures.
    """
    if not on_terminal(err=True):
        yield _lines(what)
        return
    with _terminal().bar(printable(what), total) as report:
        yield lambda done, text: report(done, printable(text))


def ask(question: str, *, yes: bool) -> None:
    """Ask for confirmation before something that cannot be undone, unless the answer is given as *yes*.

    Raises:
        click.Abort: The user declined.
        click.UsageError: Standard input is not a terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is no terminal for the answer; use --yes to proceed without it.")
    click.confirm(question, abort=True, err=True)


def reader_gone() -> bool:
    """Whether standard output is a pipe whose reader has closed it: the next line would raise an error."""
    with suppress(OSError, ValueError):
        descriptor = sys.stdout.fileno()
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            poll = select.poll()
            poll.register(descriptor, 0)
            return any(what & (select.POLLERR | select.POLLHUP) for _, what in poll.poll(0))
    return False


def give_up_output() -> None:
    """Discard what standard output has buffered: nobody reads it, and the exit must not wait for a reader."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(cell: Cell) -> str:
    if isinstance(cell, Styled):
        cell = cell.text
    return "" if cell is None else printable(cell) if isinstance(cell, str) else f"{cell}"


def _safe(parts: Iterable[Cell]) -> list[Styled]:
    return [Styled(_plain(part), part.style if isinstance(part, Styled) else "") for part in parts]


def _terminal() -> Any:
    return import_module("bridge.cli.terminal")  # not at the top of this module: it imports rich


def _lines(what: str) -> Report:
    next_s = time.monotonic() + _FIRST_REPORT_S

    def report(_: float, text: str) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + _REPORT_S
            note(f"{what}: {text}")

    return report

"""What a line or a table of a command consists of: texts with a style, cells and columns."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple


class Styled(NamedTuple):
    """A text with a style of rich, e.g. ``bold red``; only terminals show the style."""

    text: str
    style: str


Cell = str | int | float | Styled | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Arguments:
        title: Its heading.
        style: A style of rich, for cells without one.
        right: Whether it is aligned to the right, as numbers are.
        whole: Whether its cells stay in one piece on a narrow terminal: ids, which are copied.
        crop: Whether its cells are cut there rather than folded: texts whose beginning is enough.
        dotted: Whether its cells are cut there at the left: names of handlers, which differ in their last parts.
        spare: Whether it is left out there if not all columns fit.
    """

    title: str
    style: str = ""
    right: bool = False
    whole: bool = False
    crop: bool = False
    dotted: bool = False
    spare: bool = False


def on_terminal(err: bool = False) -> bool:
    """Whether standard output, or standard error, is a terminal."""
    return (sys.stderr if err else sys.stdout).isatty()

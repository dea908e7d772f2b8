"""What a check has found, for the log of a subscriber and for ``bus check``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A setting that can lose events, or one that could not be read.

    Arguments:
        setting: Its name, and where it is set: ``appendonly of the bus``.
        problem: Its value, and the consequence.
        advice: What to do.
        command: A line of shell or Python that does it, with ``APP`` for the application; empty if it depends on more.
        level: ``fail`` if events are not processed, or are lost in normal operation; ``warn`` if they are lost or late
            only when something else fails, or if that is unknown.
    """

    setting: str
    problem: str
    advice: str
    command: str = ""
    level: Level = "fail"

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}; {self.advice}" + (f": {self.command}" if self.command else "")


def first_of(names: Sequence[str], most: int) -> str:
    """Return the first names for a text, at most as many as *most*, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""One page of a list, as the browser gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

#: Most rows on one page.
MAX_ROWS = 100


@dataclass(frozen=True)
class Listing:
    """One page of a list.

    Arguments:
        rows: Rows as JSON for the browser.
        total: How many events or dead letters are listed.
        matching: How many of them match search and filter.
        dead_letters: How many dead letters the group has.
        problem: Why the search is invalid, for the user.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    matching: int = 0
    dead_letters: int = 0
    problem: str = ""


def page_of(found: list[T], start: int, length: int) -> list[T]:
    """Return *length* items from *start* on, at most :data:`MAX_ROWS`."""
    return found[start : start + min(length, MAX_ROWS)]

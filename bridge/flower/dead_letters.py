"""The list of dead letters, independent of Flower."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from bridge.errors import InvalidEvent
from bridge.events import now_ms
from bridge.flower.listing import MAX_ROWS, Listing, page_of
from bridge.handlers import registry
from bridge.storage import DeadLetter, EntryFilter, Storage

#: How many of the newest dead letters are listed.
NEWEST = 1000


class DeadLetterList:
    """The newest dead letters of the group.

    Arguments:
        storage: The bus, as the group of the application sees it.
        max_read_bytes: About how much is read for one page: a dead letter may have a megabyte.
    """

    def __init__(self, storage: Storage, max_read_bytes: int) -> None:
        self._storage = storage
        self._max_read_bytes = max_read_bytes

    def count(self) -> int:
        """Return how many dead letters the group has."""
        return self._storage.dead_letters.size().count

    def page(self, search: str, start: int, length: int) -> Listing:
        """Return a page of the newest dead letters.

        Arguments:
            search: Part of any text of a dead letter except its message, case-insensitive.
            start, length: How many rows to skip, and most rows to return.
        """
        count = self.count()
        total = min(count, NEWEST)
        part = search.strip().lower()
        if part:
            found = [dead_letter for dead_letter in self._newest() if part in "\n".join(_texts(dead_letter)).lower()]
            return Listing([self._row(one) for one in page_of(found, start, length)], total, len(found), count)
        length = min(length, MAX_ROWS)
        dead_letters = list(islice(self._newest(), start + length))[start:]
        return Listing([self._row(one) for one in dead_letters], total, total, count)

    def _newest(self) -> Iterator[DeadLetter]:
        size = 0
        for dead_letter in islice(self._storage.dead_letters.select(EntryFilter(), newest_first=True), NEWEST):
            size += len(dead_letter.raw)
            yield dead_letter.redacted_by(self._storage.settings.redaction)
            if size > self._max_read_bytes:
                return

    def _row(self, dead_letter: DeadLetter) -> dict[str, Any]:
        return {
            "dead_letter": dead_letter.dead_letter_id,
            "at_ms": dead_letter.at_ms,
            "reason": dead_letter.reason,
            "type": dead_letter.event_type,
            "id": dead_letter.event_id,
            "handler": dead_letter.handler,
            "origin": dead_letter.origin,
            "task": dead_letter.task_id,
            "detail": dead_letter.detail,
            "problem": self._why_not(dead_letter),
        }

    def _why_not(self, dead_letter: DeadLetter) -> str:
        """Return why a dead letter cannot be retried, for the user; empty if it can."""
        if dead_letter.handler and registry.get(dead_letter.handler) is None:
            return f"this application has no handler {dead_letter.handler}"
        if dead_letter.redacted_event:  # the complete event exists until it expires
            expired = dead_letter.at_ms + self._storage.settings.event_ttl_ms < now_ms()
            return "its event has expired" if expired else ""
        try:
            dead_letter.event()
        except InvalidEvent as error:
            return str(error)
        return ""


def _texts(dead_letter: DeadLetter) -> tuple[str, ...]:
    return (
        dead_letter.reason,
        dead_letter.event_type,
        dead_letter.event_id,
        dead_letter.handler or dead_letter.origin,
        dead_letter.detail,
    )

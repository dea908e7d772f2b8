"""Reads the journal for people: backwards, in small pieces, and without affecting any consumer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from bridge.errors import InvalidEvent
from bridge.events import Event
from bridge.redis import attempt, is_wrong_type
from bridge.storage import Mark, Storage, script, stream_position

#: Events read in one round trip; each may have a megabyte.
_AT_ONCE = 50


@dataclass(frozen=True)
class Header:
    """The fields of a journal entry, without the event itself.

    Arguments:
        entry_id: Stream id of the entry.
        event_id, event_type: Id and type of the event.
        at_ms: When the entry was appended, ms since the epoch.
        replay: Whether a replay appended it.
    """

    entry_id: str
    event_id: str
    event_type: str
    at_ms: int
    replay: bool


class History:
    """Looks up events in the journal and in the event keys of one bus.

    Arguments:
        storage: The bus, as the group sees it.
    """

    def __init__(self, storage: Storage) -> None:
        self._client = storage.client
        self._settings = storage.settings
        self._keys = storage.keys
        self._journal = storage.journal
        self._lookup = storage.event_lookup
        self._headers = script(storage.client, "headers")

    def newest(self, count: int, before: str = "+") -> list[Header]:
        """Return up to *count* entries, the newest first, without their events.

        Arguments:
            before: Stream id to start at; ``(`` in front of it excludes that entry.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        found: list[Header] = []
        while len(found) < count:
            page = min(_AT_ONCE, count - len(found))
            args: list[Any] = [f"({found[-1].entry_id}" if found else before, page]
            rows = self._attempt(partial(self._headers, keys=[self._keys.journal], args=args))
            found += map(_header, rows)
            if len(rows) < page:
                break
        return found

    def event(self, event_id: str) -> Event | None:
        """Return an event from its key or else from the journal; None if neither has it.

        Raises:
            InvalidEvent: The stored value is not a valid event, or another event that has taken the key since.
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        data: bytes | None = self._attempt(lambda: self._lookup.get(event_id))
        return None if data is None else Event.decode(data, max_bytes=len(data))

    def read(self, event_ids: Sequence[str]) -> dict[str, bytes]:
        """Return these events as JSON, by id, see :meth:`EventLookup.read`.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        found: dict[str, bytes] = self._attempt(lambda: self._lookup.read(event_ids))
        return found

    def events(self, event_ids: Sequence[str]) -> dict[str, Event]:
        """Return the events that are retained, by id, without their payloads, which may be large.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        found: dict[str, Event] = {}
        for start in range(0, len(event_ids), _AT_ONCE):
            for event_id, data in self.read(event_ids[start : start + _AT_ONCE]).items():
                with suppress(InvalidEvent):
                    event = Event.decode(data, max_bytes=len(data))
                    found[event_id] = event.model_copy(update={"payload": None})
        return found

    def entry_ids(self, event_ids: Sequence[str]) -> dict[str, str]:
        """Return the stream ids of these events in the journal, as far as their marks have not expired.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        marks: dict[str, Mark] = self._attempt(lambda: self._journal.marks(event_ids))
        return {event_id: mark.entry_id for event_id, mark in marks.items() if mark.entry_id}

    def undispatched(self, entry_ids: Sequence[str]) -> set[str]:
        """Return the journal entries that the group has not dispatched yet.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        journal, group = self._keys.journal, self._settings.group

        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                pipe.xinfo_groups(journal)
                for entry_id in entry_ids:
                    pipe.xpending_range(journal, group, entry_id, entry_id, 1)
                return pipe.execute(raise_on_error=False)

        groups, *pending = self._attempt(read)
        rows = [] if isinstance(groups, ResponseError) else groups  # no journal
        delivered = next(
            (stream_position(row["last-delivered-id"].decode()) for row in rows if row["name"] == group.encode()),
            (0, 0),
        )
        return {
            entry_id
            for entry_id, held in zip(entry_ids, pending, strict=True)
            if stream_position(entry_id) > delivered or (isinstance(held, list) and held)
        }

    def consequences(self, event_ids: Sequence[str], most: int) -> list[tuple[list[str], int]]:
        """Return for each event the ids of the first events that it caused, at most so many, and how many there are.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        keys = [self._keys.consequences(event_id) for event_id in event_ids]

        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.zrange(key, 0, most - 1)
                    pipe.zcard(key)
                return [_unless_wrong_type(reply) for reply in pipe.execute(raise_on_error=False)]

        replies = self._attempt(read) if keys else []
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return [([child.decode() for child in first or ()], count or 0) for first, count in pairs]

    def _attempt(self, do: Callable[[], Any]) -> Any:
        return attempt(self._settings, "reading the journal", do)


def _header(row: list[Any]) -> Header:
    entry_id, event_id, event_type, replay = row
    stream_id = entry_id.decode()
    at_ms, _ = stream_position(stream_id)
    return Header(
        stream_id,
        event_id.decode(errors="replace"),
        event_type.decode(errors="replace"),
        at_ms,
        bool(replay),
    )


def _unless_wrong_type(reply: Any) -> Any:
    """Return a reply, or None if the key of an index has another type."""
    if is_wrong_type(reply):
        return None
    if isinstance(reply, Exception):
        raise reply
    return reply

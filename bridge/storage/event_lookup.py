"""Looks up events by id: each as the journal took it, which is what was handled.

Any program may write an event key again. The TypeScript bus does so with every publication, also with one that is
refused because another event has its id: then the key holds what was refused. The mark of the id shows which of the two
the journal took.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis
from redis.exceptions import ResponseError

from bridge.errors import InvalidEvent
from bridge.events import Event
from bridge.redis import is_wrong_type
from bridge.storage.entries import entries_by_id
from bridge.storage.event_keys import EventKeys
from bridge.storage.journal import Journal
from bridge.storage.keys import Keys


class EventLookup:
    """Reads events by id.

    Arguments:
        client: Connected to the bus.
        keys, event_keys, journal: Of the same bus.
    """

    def __init__(self, client: Redis, keys: Keys, event_keys: EventKeys, journal: Journal) -> None:
        self._client = client
        self._keys = keys
        self._event_keys = event_keys
        self._journal = journal

    def read(self, event_ids: Sequence[str]) -> dict[str, bytes]:
        """Return these events as JSON, by id: from their keys, or else from the journal.

        The JSON may be invalid where no mark shows that the journal took an event with this id.

        Raises:
            RedisError: Redis does not answer.
        """
        return {event_id: data for event_id, data in self._read(event_ids).items() if data is not None}

    def get(self, event_id: str) -> bytes | None:
        """Return one event as :meth:`read`; None if it is unknown or has expired.

        Raises:
            InvalidEvent: The event has expired, and its key holds another one (``id_conflict``) or another type of
                value (``wrong_key_type``).
            RedisError: Redis does not answer.
        """
        found = self._read([event_id])
        if event_id in found and found[event_id] is None:
            text = f"the key of event {event_id} holds another event; the one that was handled is no longer retained"
            raise InvalidEvent("id_conflict", "id", text)
        return found[event_id] if found else self._string(event_id)

    def _string(self, event_id: str) -> bytes | None:
        try:
            return self._event_keys.get(event_id)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            text = f"the key of event {event_id} does not hold a string"
            raise InvalidEvent("wrong_key_type", "", text) from error

    def _read(self, event_ids: Sequence[str]) -> dict[str, bytes | None]:
        """Return these events; None for those whose keys hold other events, and whose entries were removed."""
        found: dict[str, bytes | None] = {**self._event_keys.get_many(event_ids)}
        marks = {one: mark for one, mark in self._journal.marks(event_ids).items() if mark.entry_id}
        wanted = {
            event_id: mark.entry_id
            for event_id, mark in marks.items()
            if event_id not in found or _digest(found[event_id] or b"") != mark.digest
        }
        entries = entries_by_id(self._client, self._keys.journal, list(wanted.values())) if wanted else {}
        for event_id, entry_id in wanted.items():
            fields = entries.get(entry_id, {})
            # A new journal may give an entry id again, so the entry must be that event's.
            if fields.get(b"id") == event_id.encode() and b"event" in fields:
                found[event_id] = fields[b"event"]
            elif event_id in found:
                found[event_id] = None
        return found


def _digest(data: bytes) -> str:
    try:
        return Event.decode(data, max_bytes=len(data)).digest
    except InvalidEvent:
        return ""

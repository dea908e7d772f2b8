"""What goes into the journal, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from redis import Redis

from bridge.events import compile_pattern


def entries_by_id(client: Redis, key: str, entry_ids: Sequence[str]) -> dict[str, dict[bytes, bytes]]:
    """Return the fields of those of the entries of a stream that are there, by id; one round trip."""
    with client.pipeline(transaction=False) as pipe:
        for entry_id in entry_ids:
            pipe.xrange(key, entry_id, entry_id)
        return {entry_id.decode(): fields for rows in pipe.execute() for entry_id, fields in rows}


class Entry(NamedTuple):
    """One entry as a consumer reads it; *data* is None when it was removed before it was acknowledged.

    A replay addresses its entries to one *group*, and may name the one *handler* it is for.
    """

    entry_id: bytes
    data: bytes | None
    group: str | None = None
    handler: str | None = None

    @classmethod
    def of(cls, entry_id: bytes, fields: Mapping[bytes, bytes] | None) -> Entry:
        """Return the entry with these fields. Anybody may have written it."""
        fields = fields or {}
        # What is no UTF-8 names no group and no handler there is.
        group, handler = (
            None if name is None else name.decode(errors="backslashreplace")
            for name in (fields.get(b"group"), fields.get(b"handler"))
        )
        return cls(entry_id, fields.get(b"event"), group, handler)


class GroupInfo(NamedTuple):
    """A consumer group: the id of the entry that was delivered last, and how many entries are *pending*."""

    last_delivered: str
    pending: int


@dataclass(frozen=True)
class Claimed:
    """Result of :meth:`JournalConsumer.claim`; *removed* were no longer in the journal: their events are lost."""

    cursor: bytes
    taken: int
    removed: int


@dataclass(frozen=True)
class Trimmed:
    """Result of :meth:`Journal.trim`; *lost* counts per group what was removed unacknowledged."""

    removed: int
    more: bool
    lost: dict[str, int]


def stream_position(entry_id: str) -> tuple[int, int]:
    """Return the ms since the epoch and the sequence number of a stream id, which order it; 0 where it has none."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms or 0), int(sequence or 0)


_LAST_SEQUENCE = 2**64 - 1


@dataclass(frozen=True)
class EntryFilter:
    """Those for which all of this holds.

    Arguments:
        since_ms, until_ms: Written at or after the one and before the other, ms since the epoch.
        reason, event_type: Globs, as in ``@on_event``.
        handler: Name of a handler task.
        ids: Ids of letters or of events.

    Raises:
        ValueError: A glob is none.
    """

    since_ms: int | None = None
    until_ms: int | None = None
    reason: str | None = None
    event_type: str | None = None
    handler: str | None = None
    ids: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for pattern in (self.reason, self.event_type):
            if pattern is not None:
                compile_pattern(pattern)

    def matches_dead_letter(self, reason: str, handler: str, event_type: str, *ids: str) -> bool:
        """Whether a dead letter is one of them, its time aside."""
        return _fits(self.reason, reason) and self.handler in (None, handler) and self.holds_event(event_type, *ids)

    def holds_event(self, event_type: str, *ids: str) -> bool:
        """Whether an event of this type is one of them that goes by any of *ids*."""
        return _fits(self.event_type, event_type) and (not self.ids or any(one and one in self.ids for one in ids))

    @property
    def bounds(self) -> tuple[str, str]:
        """The first and the last stream id they may have."""
        first = "-" if self.since_ms is None else f"{self.since_ms}-0"
        last = "+" if self.until_ms is None else f"{self.until_ms - 1}-{_LAST_SEQUENCE}"
        return first, last


def _fits(pattern: str | None, text: str) -> bool:
    return pattern is None or compile_pattern(pattern).fullmatch(text) is not None

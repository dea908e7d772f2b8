"""Entries of the streams: the journal and the dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from redis import Redis

from bridge.events import compile_pattern


def entries_by_id(client: Redis, key: str, entry_ids: Sequence[str]) -> dict[str, dict[bytes, bytes]]:
    """Return the fields of the entries of a stream that exist, by id; one round trip."""
    with client.pipeline(transaction=False) as pipe:
        for entry_id in entry_ids:
            pipe.xrange(key, entry_id, entry_id)
        return {entry_id.decode(): fields for rows in pipe.execute() for entry_id, fields in rows}


class Entry(NamedTuple):
    """One entry as a consumer reads it; its *data* is missing if it was removed before it was acknowledged.

    A replay addresses its entries to one *group*, and may name the one *handler* it is for. The groups *done* had
    acknowledged it before it was moved; None if it was not moved. An entry that another subscriber of the group has
    handed over comes with the names of the handlers that it was *dispatched_to*.
    """

    entry_id: bytes
    data: bytes | None
    group: str | None = None
    handler: str | None = None
    done: tuple[str, ...] | None = None
    dispatched_to: frozenset[str] | None = None

    @classmethod
    def of(cls, entry_id: bytes, fields: Mapping[bytes, bytes] | None) -> Entry:
        """Return the entry with these fields, which any program may have written."""
        fields = fields or {}
        # A name that is not UTF-8 is not that of any group or handler.
        done = tuple(_name(fields[b"done"]).split()) if b"done" in fields else None
        group, handler = (_name(fields[name]) if name in fields else None for name in (b"group", b"handler"))
        return cls(entry_id, fields.get(b"event"), group, handler, done)


def _name(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


class HandOver(NamedTuple):
    """An entry that passes to another *consumer*, with the names of the handlers that it was *dispatched_to* so far."""

    entry_id: bytes
    consumer: str
    dispatched_to: frozenset[str]


@dataclass(frozen=True)
class Claimed:
    """Result of :meth:`JournalConsumer.claim`; *removed* entries no longer exist: their events are lost."""

    cursor: bytes
    taken: int
    removed: int


@dataclass(frozen=True)
class Trimmed:
    """Result of :meth:`Journal.trim`.

    Arguments:
        removed: How many entries were removed.
        more: Whether older ones remain.
        lost: Per group, how many of them it had not acknowledged.
        cut: Empty, unless another program has removed entries since the last trim. Then the id of the first one that a
            group had not acknowledged at that time.
    """

    removed: int
    more: bool
    lost: dict[str, int]
    cut: str = ""


def stream_position(entry_id: str) -> tuple[int, int]:
    """Return ms since the epoch and sequence number of a stream id, which define its order; 0 for a missing part."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms or 0), int(sequence or 0)


_LAST_SEQUENCE = 2**64 - 1


@dataclass(frozen=True)
class EntryFilter:
    """Selects events or dead letters: those for which all of this is true.

    Arguments:
        since_ms, until_ms: Written at or after the first, and before the second, ms since the epoch.
        reason, event_type: Globs, as in ``@on_event``.
        handler: Name of a handler task.
        ids: Ids of dead letters or of events.

    Raises:
        ValueError: A glob is invalid.
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
        """Return whether a dead letter is selected, regardless of its time."""
        return (
            _matches(self.reason, reason) and self.handler in (None, handler) and self.matches_event(event_type, *ids)
        )

    def matches_event(self, event_type: str, *ids: str) -> bool:
        """Return whether an event of this type, with these ids, is selected, regardless of its time."""
        return _matches(self.event_type, event_type) and (not self.ids or any(one and one in self.ids for one in ids))

    @property
    def bounds(self) -> tuple[str, str]:
        """The first and the last stream id that a selected entry may have."""
        first = "-" if self.since_ms is None else f"{self.since_ms}-0"
        last = "+" if self.until_ms is None else f"{self.until_ms - 1}-{_LAST_SEQUENCE}"
        return first, last


def _matches(pattern: str | None, text: str) -> bool:
    return pattern is None or compile_pattern(pattern).fullmatch(text) is not None

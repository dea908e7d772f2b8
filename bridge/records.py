"""What goes into the journal, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from bridge.event import Event


class Record(NamedTuple):
    """An event with its encoded form, so that it is encoded once on its way; and as it was *heard*, if that differs."""

    event: Event
    data: bytes
    heard: bytes = b""

    @property
    def fingerprint(self) -> str:
        """Of the broadcast."""
        return fingerprint(self.event.type, self.heard or self.data)


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


@dataclass(frozen=True)
class Claimed:
    """Result of :meth:`Journal.claim`; *removed* were no longer in the journal: their events are lost."""

    cursor: bytes
    taken: int
    removed: int


@dataclass(frozen=True)
class Trimmed:
    """Result of :meth:`Journal.trim`; *lost* counts per group what was removed unacknowledged."""

    removed: int
    more: bool
    lost: dict[str, int]


def place_of(entry_id: str) -> tuple[int, int]:
    """Return the ms since the epoch and the sequence number of a stream id, which order it; 0 where it has none."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms or 0), int(sequence or 0)


def fingerprint(event_type: str, data: bytes) -> str:
    """Return a short hash of a broadcast: its channel and its bytes."""
    return blake2b(event_type.encode() + b" " + data, digest_size=6).hexdigest()

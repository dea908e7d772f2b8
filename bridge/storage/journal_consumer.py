"""The journal as one consumer of a group reads it.

The methods raise redis-py's errors as they come: the loops that call them decide how to wait. They raise
:class:`~bridge.errors.JournalLost` when the group or the journal was deleted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal, cast

from redis import Redis

from bridge.storage.entries import Claimed, Entry, HandOver, stream_position
from bridge.storage.journal import group_errors
from bridge.storage.keys import Keys
from bridge.storage.lua import script


class JournalConsumer:
    """One consumer of one consumer group.

    Arguments:
        client: Connected to the bus.
        keys: Of the same bus.
        group: Name of the group.
        name: Name of the consumer within the group; no other live process may use it.
    """

    def __init__(self, client: Redis, keys: Keys, group: str, name: str) -> None:
        self._client = client
        self._key = keys.journal
        self._journal_start = keys.journal_start
        self._fencing_token = keys.fencing_token(group)
        self._handed_over = keys.handed_over(group)
        self._create_group = script(client, "create_group")
        self._claim = script(client, "claim")
        self._leave = script(client, "leave")
        self.group = group
        self.name = name

    def create_group(self, start: Literal["earliest", "latest"]) -> bool:
        """Create the group, and the journal if it does not exist; return False when the group exists already."""
        args = [self.group, "0" if start == "earliest" else "$"]
        return bool(self._create_group(keys=[self._key, self._journal_start, self._fencing_token], args=args))

    def read(self, count: int, block_ms: int) -> list[Entry]:
        """Take up to *count* entries that no consumer of the group has had; wait up to *block_ms* for the first."""
        return self._read(b">", count, block_ms)

    def pending_entries(self, count: int, after: bytes = b"0") -> list[Entry]:
        """Return up to *count* entries that this consumer took and has not acknowledged, the oldest first.

        Arguments:
            after: Id of the entry before the first one.
        """
        entries = self._read(after, count, None)
        if not entries:
            return []
        notes: Any = self._client.hmget(self._handed_over, [entry.entry_id for entry in entries])
        return [
            entry if note is None else entry._replace(dispatched_to=_names(note))
            for entry, note in zip(entries, notes, strict=True)
        ]

    def _read(self, start: bytes, count: int, block_ms: int | None) -> list[Entry]:
        with group_errors():
            reply = self._client.xreadgroup(self.group, self.name, {self._key: start}, count=count, block=block_ms)
        return [Entry.of(*row) for row in cast("Any", reply)[0][1]] if reply else []

    def claim(self, min_idle_ms: int, cursor: bytes, count: int) -> Claimed:
        """Take over entries that another consumer has held for *min_idle_ms*; :meth:`pending_entries` returns them.

        After an error, too: the reply may have been lost. The fencing token advances in the same step, so the other
        consumer can no longer dispatch them.

        Arguments:
            cursor: ``b"0-0"`` for the first call, then that of the last result until it is ``b"0-0"`` again.
        """
        with group_errors():
            args: list[Any] = [self.group, self.name, min_idle_ms, cursor, count]
            reply: Any = self._claim(keys=[self._key, self._fencing_token], args=args)
        return Claimed(*reply)

    def leave(self) -> bool:
        """Remove this consumer from the group, unless it holds entries; return whether it was removed."""
        return self.remove(self.name)

    def remove(self, consumer: str, min_idle_ms: int = 0) -> bool:
        """Remove a consumer from the group, unless it holds entries or has read within *min_idle_ms*."""
        with group_errors():
            return bool(self._leave(keys=[self._key], args=[self.group, consumer, min_idle_ms]))

    def idle_consumers(self, min_idle_ms: int) -> list[str]:
        """Return the consumers of the group that hold no entry and have not read for *min_idle_ms*."""
        with group_errors():
            consumers: Any = self._client.xinfo_consumers(self._key, self.group)
        return [row["name"].decode() for row in consumers if row["idle"] >= min_idle_ms and not row["pending"]]

    # Commands for the transaction that dispatches, see subscriber/dispatch/transaction.py

    def read_command(self, count: int) -> tuple[Any, ...]:
        """Return the command of :meth:`read`, without waiting; its reply is for :meth:`entries_of`."""
        return ("XREADGROUP", "GROUP", self.group, self.name, "COUNT", count, "STREAMS", self._key, ">")

    def entries_of(self, reply: Any) -> list[Entry]:
        """Return the entries in the reply to :meth:`read_command`."""
        rows = reply[0][1] if reply else ()
        return [
            Entry(entry_id, fields[5])  # nearly all entries have these fields
            if len(fields) == 6 and fields[4] == b"event"
            else Entry.of(entry_id, dict(zip(fields[::2], fields[1::2], strict=True)))
            for entry_id, fields in rows
        ]

    def acknowledge_command(self, entry_ids: Sequence[bytes]) -> tuple[Any, ...]:
        """Return the command that acknowledges entries for the group; safe to repeat."""
        return ("XACK", self._key, self.group, *entry_ids)

    def watch_commands(self) -> list[tuple[Any, ...]]:
        """Return the commands that make the next transaction fail if the fencing token advances before it."""
        return [("WATCH", self._fencing_token), ("GET", self._fencing_token)]

    def hand_over_commands(self, handed_over: Iterable[HandOver], finished: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Return the commands by which entries of this consumer pass to others, which read them as their pending ones.

        Arguments:
            finished: Entries that were handed over to this consumer and are acknowledged now.
        """
        by_consumer: defaultdict[str, list[bytes]] = defaultdict(list)
        notes: list[Any] = []
        for entry_id, consumer, dispatched_to in handed_over:
            by_consumer[consumer].append(entry_id)
            notes += (entry_id, json.dumps(sorted(dispatched_to)))
        commands: list[tuple[Any, ...]] = [
            ("XCLAIM", self._key, self.group, consumer, 0, *entry_ids, "JUSTID")
            for consumer, entry_ids in by_consumer.items()
        ]
        if notes:
            commands.append(("HSET", self._handed_over, *notes))
        if finished:
            commands.append(("HDEL", self._handed_over, *finished))
        return commands

    def forget_removed(self) -> None:
        """Delete what is known of entries that were handed over, and have been trimmed or moved since."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hkeys(self._handed_over)
            pipe.xrange(self._key, count=1)
            pipe.xrevrange(self._key, count=1)
            noted, *ends = pipe.execute()
        if not noted:
            return
        kept = [stream_position(entry_id.decode()) for rows in ends for entry_id, _ in rows]
        positions = {entry_id: stream_position(entry_id.decode()) for entry_id in noted}
        if gone := [entry_id for entry_id, at in positions.items() if not kept or not min(kept) <= at <= max(kept)]:
            self._client.hdel(self._handed_over, *gone)

    def fencing_token(self) -> bytes | None:
        """Return the fencing token as it is now."""
        return cast("bytes | None", self._client.get(self._fencing_token))

    def advance_fencing_token(self) -> None:
        """Make the transactions fail that were begun before: their entries now belong to another connection.

        It must be advanced before those entries are read again. Where entries go to another consumer, the script that
        gives them to it advances the token itself.
        """
        self._client.incr(self._fencing_token)


def _names(note: bytes) -> frozenset[str]:
    """Return the names in a note about an entry that was handed over; without them handlers only get it again."""
    with suppress(ValueError):
        found = json.loads(note)
        if isinstance(found, list):
            return frozenset(name for name in found if isinstance(name, str))
    return frozenset()

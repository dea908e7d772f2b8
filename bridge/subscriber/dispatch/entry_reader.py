"""Reading: which journal entries are dispatched next, and how many at once."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from bridge.config import BATCH_BYTES, BridgeSettings
from bridge.errors import JournalAhead
from bridge.storage import MAX_AHEAD_MS, Entry, JournalConsumer, stream_position
from bridge.subscriber.dispatch.router import Batch
from bridge.subscriber.dispatch.transaction import DispatchTransaction
from bridge.subscriber.members import Members

#: Entries of the first batch; doubled while batches are full and small.
_FIRST_LIMIT = 32
#: Before the id of every entry.
_FIRST = b"0"
#: Entries of a batch that make it likely that more are waiting.
_BACKLOG = 16


class EntryReader:
    """Reads entries as one consumer of the group. Used by one thread.

    After a start, a failure or a claim, the pending entries of this consumer come first, all of them once. So do, from
    time to time, those that were left pending. During a backlog the next entries were read ahead, with the transaction
    of the batch before. Otherwise new entries are read.

    Arguments:
        consumer: Reads for the group.
        transaction: Reads ahead.
        settings: ``batch_size``, ``block_ms``, ``max_queue_length``.
        members: Hand over entries while they have different handlers.
    """

    def __init__(
        self, consumer: JournalConsumer, transaction: DispatchTransaction, settings: BridgeSettings, members: Members
    ) -> None:
        self._members = members
        self._consumer = consumer
        self._transaction = transaction
        self._settings = settings
        #: How many entries to read at once.
        self.limit = min(_FIRST_LIMIT, settings.batch_size)
        #: The pending entries of this consumer that come next are those after this one; None: new entries come next.
        self._pending_after: bytes | None = _FIRST
        #: Entries that were left pending, and when they are read again; None: no entry was left.
        self._left: set[bytes] = set()
        self._left_due_at: float | None = None
        #: Entries that were read, and come before others: with the transaction of the batch before, or as too many.
        self.ahead: list[Entry] = []

    def read(self) -> list[Entry]:
        """Return the next entries, of :data:`BATCH_BYTES` or one; wait up to ``block_ms`` for the first new one.

        Raises:
            JournalLost: The journal or the group no longer exists.
            JournalAhead: The ids of the journal are ahead of the clock.
            RedisError: Redis failed. It may have assigned entries to this consumer: read pending entries next.
        """
        self._transaction.open()
        if self._pending_after is None and self._left_are_due:
            self.reread_pending()
        if self._pending_after is None and self._members.differ:
            self._pending_after = _FIRST  # others may have handed over entries, which are not new ones
        if self._pending_after is not None:
            self.ahead = []  # these entries are pending as well
            entries = _first(self._consumer.pending_entries(self.limit, self._pending_after))
            self._pending_after = entries[-1].entry_id if entries else None
            if not entries and self._members.differ:
                entries = self._next()
            entries = [entry for entry in entries if entry.entry_id not in self._left]
        else:
            entries = self._next()
        if entries and stream_position(entries[-1].entry_id.decode())[0] > self._transaction.now_ms + MAX_AHEAD_MS:
            raise JournalAhead
        return entries

    def _next(self) -> list[Entry]:
        self.ahead = self.ahead or self._consumer.read(self.limit, self._settings.block_ms)
        return self.take_ahead()

    def take_ahead(self) -> list[Entry]:
        """Remove from :attr:`ahead` the entries that come next, and return them."""
        entries = _first(self.ahead)
        self.ahead = self.ahead[len(entries) :]
        return entries

    def pending(self, after: bytes) -> list[Entry]:
        """Return the pending entries of this consumer, from the one after *after* on.

        Raises:
            JournalLost, RedisError: As :meth:`read`.
        """
        self._transaction.open()
        return _first(self._consumer.pending_entries(self.limit, after))

    def reads_ahead(self, entries: Sequence[Entry]) -> bool:
        """Whether to read the entries after *entries*, which were just read, while these are dispatched."""
        # The length of a queue counts once all earlier messages are in it, so nothing can overlap with a limit.
        backlog = len(entries) >= _BACKLOG and self._settings.max_queue_length is None
        return backlog and not self.rereads_pending and not self.ahead

    def adapt_limit(self, entries: Sequence[Entry], batch: Batch) -> None:
        """Adapt the limit to the number of *entries* and to the size of the *batch* that was made of them."""
        stamped = sum(len(message.stamped) for message in batch.to_push + batch.to_send)
        size = max(_size(entries), stamped)
        if size > BATCH_BYTES:
            self.limit = _fitting(len(entries), size)
        elif len(entries) >= self.limit:
            self.limit = min(2 * self.limit, self._settings.batch_size)
        else:  # the backlog is over: of the next one, which may have large events, only the beginning is read
            self.limit = min(self.limit, max(2 * len(entries), _FIRST_LIMIT))

    def lower_limit(self, entries: Sequence[Entry]) -> None:
        """Lower the limit if *entries*, which were read and wait for their dispatch, are large."""
        if (size := _size(entries)) > BATCH_BYTES:
            self.limit = min(self.limit, _fitting(len(entries), size))

    @property
    def rereads_pending(self) -> bool:
        """Whether the next entries are pending ones of this consumer."""
        return self._pending_after is not None or self._left_are_due or self._members.differ

    @property
    def _left_are_due(self) -> bool:
        return self._left_due_at is not None and time.monotonic() >= self._left_due_at

    def reread_pending(self) -> None:
        """Read the pending entries of this consumer next, from the first one on."""
        self._pending_after = _FIRST
        self._left_due_at = None
        self._left.clear()

    def leave_pending(self, entry_ids: Collection[bytes], delay_s: float) -> None:
        """Read these entries, which were left pending, again after *delay_s*, unless all are read before."""
        self._left.update(entry_ids)
        self._left_due_at = time.monotonic() + delay_s

    def start_over(self) -> None:
        """Forget what was read ahead; read the pending entries of this consumer next."""
        self.ahead = []
        self.reread_pending()


def _first(entries: list[Entry]) -> list[Entry]:
    """Return the first entries, of :data:`BATCH_BYTES` or one: messages need several times as much memory as events."""
    size = _size(entries)
    while size > BATCH_BYTES and len(entries) > 1:
        entries = entries[: _fitting(len(entries), size)]
        size = _size(entries)
    return entries


def _fitting(count: int, size: int) -> int:
    """Return how many of *count* entries with *size* bytes together have :data:`BATCH_BYTES`; at least one."""
    return max(1, count * BATCH_BYTES // size)


def _size(entries: Sequence[Entry]) -> int:
    return sum(len(entry.data or b"") for entry in entries)

"""The transaction that dispatches entries: exactly once where bus and broker are the same Redis.

One MULTI pushes the messages, lists their tasks in the ledger and acknowledges the journal entries. A transaction whose
reply is lost may be executed later, after its entries were read again: over a connection that hung or, when another
consumer has claimed them, from a process that was frozen. So each transaction WATCHes a *fencing token*, a counter of
the group that is advanced whenever entries go to another consumer or connection, or handlers join or leave the group.

The next entries are read in the same round trip, and the server works on both while the caller makes messages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis import Redis

from bridge.broker import Message, by_queue
from bridge.redis import RawConnection
from bridge.storage import Entry, JournalConsumer, Ledger, PresenceStore, group_errors, read_presences, server_ms
from bridge.subscriber.members import Members

_MULTI, _EXEC, _TIME = ("MULTI",), ("EXEC",), ("TIME",)


class TransactionResult(NamedTuple):
    """The outcome of a request: whether its transaction was *committed*, and the *entries* that were read.

    ``ownership_lost``: entries went to another consumer, maybe those of this one, which must be read again.
    """

    committed: bool
    ownership_lost: bool
    entries: list[Entry]


@dataclass(frozen=True)
class _Request:
    """A request whose replies are due.

    Arguments:
        commands: How many its transaction has; 0: it has no transaction.
        reads: Whether it reads entries after the transaction.
    """

    commands: int
    reads: bool


class DispatchTransaction:
    """A connection on which one request may be under way while its caller does other things. Used by one thread.

    Where the broker is another server there are no messages to push, only entries to read ahead.

    Arguments:
        client: Connected to the bus.
        consumer: Reads for the group.
        ledger, presence: Of the group.
        members: Updated whenever the fencing token is read, so that they are those that there were at that time.
    """

    def __init__(
        self, client: Redis, consumer: JournalConsumer, ledger: Ledger, presence: PresenceStore, members: Members
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._consumer = consumer
        self._presence = presence
        self._members = members
        self._connection: RawConnection | None = None
        self._request: _Request | None = None
        #: As it was when this connection was opened.
        self.fencing_token: bytes | None = None
        #: Whether a transaction may still be on its way over a connection that was closed.
        self._in_doubt = False
        #: What to add to this process's monotonic clock to get the clock of the server.
        self._clock_offset_ms = 0.0
        #: Keys of queues that were lists, or missing, when this connection first used them.
        self._checked_queues: set[str] = set()

    @property
    def under_way(self) -> bool:
        """Whether a request waits for :meth:`finish`."""
        return self._request is not None

    @property
    def now_ms(self) -> int:
        """The time by the clock of the server, ms since the epoch."""
        return int(time.monotonic() * 1000 + self._clock_offset_ms)

    def open(self) -> None:
        """Connect, unless connected. Only entries that are read after this are guarded by the fencing token.

        Raises:
            RedisError: Redis does not answer.
        """
        self._opened()

    def _opened(self) -> RawConnection:
        if self._connection is not None:
            return self._connection
        try:
            if self._in_doubt:
                self._consumer.advance_fencing_token()
            connection = self._connection = RawConnection(self._client)
            connection.send([*self._consumer.watch_commands(), _TIME, self._presence.read_command()])
            self.fencing_token = self._watched(connection)
            self._members.update(read_presences(connection.reply(), self.now_ms))
        except BaseException:
            self.close()
            raise
        self._in_doubt = False
        return connection

    def begin(
        self,
        entry_ids: Sequence[bytes],
        messages: Sequence[Message],
        read: int,
        further: Sequence[tuple[Any, ...]] = (),
    ) -> None:
        """Send a request: push, list and acknowledge, then read up to *read* further entries without waiting for any.

        Arguments:
            further: More commands of the same transaction.

        Raises:
            RedisError: Redis does not answer, or the key of a queue does not hold a list.
        """
        try:
            connection = self._opened()
            work = [*self._commands(entry_ids, messages), *further]
            commands = [_MULTI, *work, _EXEC, *self._consumer.watch_commands(), _TIME] if work else []
            self._request = _Request(len(work), bool(read))
            if read:
                commands.append(self._consumer.read_command(read))
            connection.send(commands)
        except BaseException:
            self.close()
            raise

    def finish(self) -> TransactionResult:
        """Wait for the outcome of the request under way.

        Raises:
            JournalLost: The group no longer exists.
            RedisError: Redis failed. The transaction may have been executed, or be executed later.
        """
        connection, request = self._connection, self._request
        committed = ownership_lost = False
        entries: list[Entry] = []
        if connection is None or request is None:
            return TransactionResult(committed, ownership_lost, entries)
        try:
            if request.commands:
                committed = connection.transaction_replies(request.commands) is not None
                ownership_lost = self._watched(connection) != self.fencing_token or not committed
            if request.reads:
                with group_errors():
                    entries = self._consumer.entries_of(connection.reply())
        except BaseException:
            self.close()
            raise
        self._request = None
        if ownership_lost:
            self.close()
            self._in_doubt = False  # its outcome is known
        return TransactionResult(committed, ownership_lost, entries)

    def close(self) -> None:
        """Close the connection and give up the request under way."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._in_doubt = self._in_doubt or self.under_way
        self._request = None
        self._checked_queues.clear()

    def _commands(self, entry_ids: Sequence[bytes], messages: Sequence[Message]) -> list[tuple[Any, ...]]:
        queues = by_queue(messages)
        for key in queues.keys() - self._checked_queues:
            # An error in a transaction does not undo its other commands. WRONGTYPE is the only likely one. If a queue
            # is replaced later, its tasks are in the ledger, and so are sent again.
            self._client.llen(key)
            self._checked_queues.add(key)
        commands: list[tuple[Any, ...]] = [("LPUSH", key, *texts) for key, texts in queues.items()]
        if messages:
            commands += self._ledger.list_commands([message.ledger_entry for message in messages], self.now_ms)
        if entry_ids:
            commands.append(self._consumer.acknowledge_command(entry_ids))
        return commands

    def _watched(self, connection: RawConnection) -> bytes | None:
        """Read the replies to WATCH, GET and TIME; return the fencing token as it is now."""
        connection.reply()
        fencing_token: bytes | None = connection.reply()
        self._clock_offset_ms = server_ms(connection.reply()) - time.monotonic() * 1000
        return fencing_token

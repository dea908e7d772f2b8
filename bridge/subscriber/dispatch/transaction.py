"""Handing events over to Celery where bus and broker are one Redis: in one transaction, so exactly once.

Messages are pushed, their tasks listed in the ledger and their journal entries acknowledged in one MULTI. A transaction
whose reply is lost may still come to pass after its entries were read again: from a connection that hung, or, when
another consumer has claimed them, from a process that froze. So each is guarded by WATCH on a *fence*, a counter of the
group that is raised whenever entries change hands.

The next entries are read in the same round trip, and the server works on both while the caller makes messages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import Redis

from bridge.broker import Message, by_queue
from bridge.storage import Entry, Journal, Ledger, group_errors

_MULTI, _EXEC, _TIME = ("MULTI",), ("EXEC",), ("TIME",)


class TransactionResult(NamedTuple):
    """To a request: whether its transaction came to pass, and the entries read.

    ``overtaken``: entries have changed hands, maybe those; what this consumer holds must be read again.
    """

    committed: bool
    ownership_lost: bool
    entries: list[Entry]


class DispatchTransaction:
    """A connection on which one request may be under way while its caller does other things; used by one thread.

    Where the broker is another, there are no messages to hand over here, but entries to read ahead.

    Arguments:
        client: Connected to the bus.
        journal, ledger: Of the group.
        consumer: Who reads.
    """

    def __init__(self, client: Redis, journal: Journal, ledger: Ledger, consumer: str) -> None:
        self._client = client
        self._journal = journal
        self._ledger = ledger
        self._consumer = consumer
        self._connection: Any = None  # redis-py has no types for replies that are read one by one
        self._fence: bytes | None = None
        #: From this process's monotonic clock to the clock of the server.
        self._clock_offset_ms = 0.0
        #: Keys of queues that are lists, or not there.
        self._queues: set[str] = set()
        #: Whether a request may still be on its way over a connection that was given up.
        self._in_doubt = False
        #: How many commands the transaction of the request under way has, and whether it reads; None: there is none.
        self._request: tuple[int, bool] | None = None

    @property
    def under_way(self) -> bool:
        """Whether a request waits for :meth:`finish`."""
        return self._request is not None

    @property
    def now_ms(self) -> int:
        """The time, ms since the epoch, by the clock of the server."""
        return int(time.monotonic() * 1000 + self._clock_offset_ms)

    def open(self) -> None:
        """Connect, unless connected. Only entries read after this are guarded."""
        if self._connection is not None:
            return
        try:
            if self._in_doubt:
                self._journal.advance_fencing_token()
            self._connection = self._client.connection_pool.get_connection()
            self._send([*self._journal.watch_commands(), _TIME])
            self._fence = self._guarded()
        except BaseException:
            self.close()
            raise
        self._in_doubt = False

    def begin(self, entry_ids: Sequence[bytes], messages: Sequence[Message], read: int) -> None:
        """Send a request: push, list and acknowledge, then read up to *read* further entries without waiting for any.

        Raises:
            RedisError: Redis does not answer, or the key of a queue holds something else than a list.
        """
        try:
            self.open()
            work = self._work(entry_ids, messages)
            commands = [_MULTI, *work, _EXEC, *self._journal.watch_commands(), _TIME] if work else []
            self._request = (len(work), bool(read))
            if read:
                commands.append(self._journal.reading(self._consumer, read))
            self._send(commands)
        except BaseException:
            self.close()
            raise

    def finish(self) -> TransactionResult:
        """Wait for the answer to the request under way.

        Raises:
            JournalLost: The group is gone.
            RedisError: Redis failed. The transaction may have come to pass.
        """
        (queued, reading), committed, ownership_lost = self._request or (0, False), False, False
        entries: list[Entry] = []
        try:
            if queued:
                committed = self._executed(queued)
                ownership_lost = self._guarded() != self._fence or not committed
            if reading:
                with group_errors():
                    entries = self._journal.entries_read(self._connection.read_response())
        except BaseException:
            self.close()
            raise
        self._request = None
        if ownership_lost:
            self.close()
            self._in_doubt = False  # it has had its answer
        return TransactionResult(committed, ownership_lost, entries)

    def close(self) -> None:
        """Give up the connection and what is under way on it."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.disconnect()
            self._client.connection_pool.release(connection)
        self._in_doubt = self._in_doubt or self.under_way
        self._request = None
        self._queues.clear()

    def _work(self, entry_ids: Sequence[bytes], messages: Sequence[Message]) -> list[tuple[Any, ...]]:
        queues = by_queue(messages)
        for key in queues.keys() - self._queues:
            # An error in a transaction does not undo its other commands. This is the only one to be expected; should it
            # come about later, the tasks are listed and so sent again.
            self._client.llen(key)
            self._queues.add(key)
        commands: list[tuple[Any, ...]] = [("LPUSH", key, *texts) for key, texts in queues.items()]
        if messages:
            commands += self._ledger.listing([message.listed for message in messages], self.now_ms)
        if entry_ids:
            commands.append(self._journal.acknowledging(entry_ids))
        return commands

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> None:
        self._connection.send_packed_command([b"".join(_packed(command)) for command in commands])

    def _executed(self, queued: int) -> bool:
        for _ in range(1 + queued):  # MULTI says OK, each command QUEUED, or why not
            self._connection.read_response()
        replies = self._connection.read_response()
        for error in replies or ():
            if isinstance(error, Exception):
                raise error
        return replies is not None

    def _guarded(self) -> bytes | None:
        """Read the answers to what guards the next transaction; return the fence as it is now."""
        self._connection.read_response()
        fence: bytes | None = self._connection.read_response()
        seconds, microseconds = self._connection.read_response()
        self._clock_offset_ms = int(seconds) * 1000 + int(microseconds) / 1000 - time.monotonic() * 1000
        return fence


def _packed(command: tuple[Any, ...]) -> list[bytes]:
    """Return the pieces of a command as it is sent: for large ones many times as fast as hiredis, which copies."""
    pieces = [b"*%d" % len(command)]
    for argument in command:
        data = argument if type(argument) is bytes else str(argument).encode()
        pieces += (b"\r\n$%d\r\n" % len(data), data)
    pieces.append(b"\r\n")
    return pieces

"""Journal to Celery: each entry becomes one task message for every handler of its event."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence

from bridge.broker import Outbox
from bridge.handlers import Registry
from bridge.storage import Ended, Entry, JournalConsumer, Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.back_pressure import BackPressure
from bridge.subscriber.dispatch.entry_reader import EntryReader
from bridge.subscriber.dispatch.router import Batch, Router
from bridge.subscriber.dispatch.transaction import DispatchTransaction
from bridge.subscriber.members import Members
from bridge.telemetry import Action, Counters, log_fields

log = logging.getLogger(__name__)

#: Longest time, at the stop, for entries that others have handed over; they may go on handing over.
_MAX_FINISH_S = 2.0


class Dispatcher:
    """One consumer of the group: reads entries, routes them, sends their messages, acknowledges. Used by one thread.

    An entry is acknowledged in the step that lists its tasks in the ledger. Where bus and broker are the same Redis,
    this step pushes their messages too; otherwise it comes after the broker has them. After a crash before that step
    the messages are sent again, with the same task ids.

    Arguments:
        storage, outbox, registry, dead_letters, counters: Its parts.
        consumer: Reads for the group.
        members: Its other subscribers, which may have other handlers.
    """

    def __init__(
        self,
        storage: Storage,
        outbox: Outbox,
        registry: Registry,
        dead_letters: DeadLetterWriter,
        counters: Counters,
        consumer: JournalConsumer,
        members: Members,
    ) -> None:
        settings = storage.settings
        self._transaction = DispatchTransaction(storage.client, consumer, storage.ledger, storage.presence, members)
        self._reader = EntryReader(consumer, self._transaction, settings, members)
        self._router = Router(outbox, registry, settings, members)
        self._members = members
        self._back_pressure = BackPressure(outbox, counters, settings, consumer.name)
        self._outbox = outbox
        self._ledger = storage.ledger
        self._dead_letters = dead_letters
        self._counters = counters
        self._group = settings.group
        self._pause_s = settings.block_ms / 1000
        self._consumer = consumer
        #: Whether a claim has advanced the fencing token: what is read next needs the new one.
        self._token_is_old = False
        #: The batch whose transaction is under way.
        self._in_transaction: Batch | None = None

    @property
    def full_queue(self) -> str | None:
        """The queue that dispatch waits for because it is full; None if it does not wait."""
        return self._back_pressure.full_queue

    def reread_pending(self) -> None:
        """Read the pending entries of this consumer in the next step, as after a claim."""
        self._token_is_old = True
        self._reader.reread_pending()

    def step(self) -> int:
        """Dispatch one batch, or wait ``block_ms`` for the first event or for room in a queue.

        During a backlog the next entries are read, and routed, while the transaction of the batch before is under way.

        Returns:
            The number of entries that were dispatched, or whose transaction is under way.

        Raises:
            JournalLost: The group no longer exists.
            JournalAhead: The ids of the journal are ahead of the clock.
            Exception: Redis or the broker failed. What was not acknowledged is dispatched by the next step.
        """
        try:
            self._members.refresh()
            pending = self._reader.rereads_pending
            if pending:
                self._end_transaction()  # entries that were read with it are pending as well
            if self._token_is_old:
                self._token_is_old = False
                self._transaction.close()
            entries = self._reader.read()
            if not entries and self._consumer.fencing_token() != self._transaction.fencing_token:
                # Others may hand over entries of handlers that they lack, which this one would not look for.
                self._start_over()
                return 0
            if self._dispatch(entries, pending=pending, read_ahead=self._reader.reads_ahead(entries)):
                return len(entries)
        except _OwnershipLost:
            extra = log_fields(Action.ENTRIES_OWNERSHIP_LOST, group=self._group, consumer=self._consumer.name)
            text = "Entries were claimed in group %s, or its handlers changed; reading pending entries again"
            log.info(text, self._group, extra=extra)
            self._start_over()
            return 0
        except BaseException:
            self._start_over()
            # A broker with little room accepts a small batch where it refuses a large one after its first half.
            self._reader.limit = max(1, self._reader.limit // 2)
            raise
        self._start_over()
        self._reader.limit = 1  # one entry is enough to measure its queues again
        time.sleep(self._pause_s)
        return 0

    def finish(self) -> None:
        """Dispatch what was read ahead or handed over, and read nothing new.

        Raises:
            Exception: Redis or the broker failed. What was not acknowledged is left to other consumers.
        """
        try:
            if self._members.differ:
                self._finish_handed_over()
            while self._reader.ahead or self._transaction.under_way:
                entries = self._reader.take_ahead()
                if not self._dispatch(entries, pending=False, read_ahead=False):
                    return
        except _OwnershipLost:
            return
        finally:
            self._transaction.close()

    def _finish_handed_over(self) -> None:
        """Dispatch what others have handed over before they noticed that this subscriber stops."""
        self._start_over()  # the fencing token has advanced since they know it
        last, deadline = b"0", time.monotonic() + _MAX_FINISH_S
        while time.monotonic() < deadline and (entries := self._reader.pending(last)):
            last = entries[-1].entry_id
            if not self._dispatch(entries, pending=True, read_ahead=False):
                return
            self._end_transaction()

    def reconnect(self) -> None:
        """Close the connection to the broker: a new one declares queues and bindings again, which may be lost."""
        self._outbox.close()

    def close(self) -> None:
        """Give up what is under way."""
        self._transaction.close()

    def _start_over(self) -> None:
        self._transaction.close()
        self._in_transaction = None
        self._reader.start_over()

    def _dispatch(self, entries: Sequence[Entry], *, pending: bool, read_ahead: bool) -> bool:
        """Send the messages of *entries* and acknowledge them; return False, and do nothing, while a queue is full.

        Arguments:
            pending: They were read before. One that was left pending has tasks that were sent then.
        """
        if read_ahead and not self._transaction.under_way:
            self._reader.lower_limit(entries)
            self._transaction.begin([], [], read=self._reader.limit)  # while the first batch of a backlog is routed
        batch = self._router.route(entries)
        if (pending or batch.has_moved) and (task_ids := batch.task_ids):
            batch.leave_out(self._ledger.sent(task_ids))
        if self._back_pressure.applies_to(batch):
            return False
        ahead = self._end_transaction()
        self._send(batch)
        self._reader.adapt_limit(entries, batch)
        self._reader.lower_limit(ahead)
        read = self._reader.limit if read_ahead and ahead else 0
        further = self._consumer.hand_over_commands(batch.handed_over, batch.finished)
        pushes = bool(batch.push_ids or batch.to_push or further)
        if pushes or read:
            self._transaction.begin(batch.push_ids, batch.to_push, read, further)
        if pushes:
            self._in_transaction = batch
        else:
            self._count(batch)
        self._reader.ahead += ahead or self._end_transaction()  # with nothing to route meanwhile, wait
        return True

    def _send(self, batch: Batch) -> None:
        """Do what needs no transaction: the dead letters, and the messages that go through the broker's client."""
        if refused := self._outbox.send(batch.to_send):
            self._router.refuse(refused, batch)
        # Not earlier: while the broker is unavailable the batch is retried, and each try would write and count them.
        # If one is refused, its entry stays pending for another try, and all other entries go on.
        refused_ids = {entry_id for entry_id, one in batch.dead_letters if not self._dead_letters.write(one, Ended())}
        if refused_ids:
            batch.leave_pending(refused_ids)
            self._reader.leave_pending(refused_ids, self._dead_letters.retry_s)
        if batch.send_ids or batch.to_send:
            tasks = [message.ledger_entry for message in batch.to_send]
            if not self._ledger.acknowledge_sent(batch.send_ids, tasks, self._transaction.fencing_token):
                raise _OwnershipLost

    def _end_transaction(self) -> list[Entry]:
        """Wait for the reply to the transaction under way; return the entries that were read with it.

        Raises:
            _OwnershipLost: See there.
        """
        if not self._transaction.under_way:
            return []
        batch, self._in_transaction = self._in_transaction, None
        result = self._transaction.finish()
        if batch is not None and result.committed:
            self._count(batch)
        if result.ownership_lost:
            raise _OwnershipLost
        return result.entries

    def _count(self, batch: Batch) -> None:
        """Count a batch that is done; one that is retried would be counted again."""
        counts = Counter((name, event_type) for _, name, event_type in batch.counts)
        if lost := counts["lost", ""]:
            extra = log_fields(Action.EVENT_LOST, group=self._group, consumer=self._consumer.name, count=lost)
            text = "Lost %d events of group %s: their journal entries were removed before they were dispatched"
            log.error(text, lost, self._group, extra=extra)
        messages = batch.to_push + batch.to_send
        self._counters.add_each("dispatched", [message.event.type for message in messages])
        for (name, event_type), amount in counts.items():
            self._counters.add(name, amount, event_type)
        now_ms = self._transaction.now_ms
        appended_ms = Counter([message.entry_id.partition(b"-")[0] for message in messages])
        self._counters.dispatched_after((now_ms - int(ms), times) for ms, times in appended_ms.items())


class _OwnershipLost(Exception):
    """Entries that were read may belong to another consumer now, or have further handlers: read them again."""

"""Journal to Celery: each entry becomes one task message for every handler of its event."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from bridge.broker import Message, Outbox
from bridge.bus import Admission
from bridge.config import BATCH_BYTES
from bridge.errors import InvalidEvent
from bridge.events import EncodedEvent
from bridge.handlers import Handler, Registry
from bridge.storage import DeadLetter, Ended, Entry, Storage, dead_letter_fields
from bridge.subscriber.dispatch.batch import Batch
from bridge.subscriber.dispatch.transaction import DispatchTransaction
from bridge.telemetry import Action, Counters, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Entries of the first batch; doubled while batches are full and small.
_FIRST_LIMIT = 32
#: Entries of a batch that make it likely that others wait.
_BACKLOG = 16


class Dispatcher:
    """One consumer of the group. Used by one thread.

    An entry is acknowledged in one step with listing its tasks in the ledger: where bus and broker are one Redis in the
    step that pushes their messages too, otherwise after their messages are at the broker. A crash before that sends
    these again, with the same task ids.

    Arguments:
        storage, outbox, registry, counters: Its parts.
        consumer: Name within the group; no other live process may use it.
    """

    def __init__(
        self,
        storage: Storage,
        outbox: Outbox,
        registry: Registry,
        counters: Counters,
        consumer: str,
    ) -> None:
        settings = storage.settings
        self._admission = Admission(settings)
        self._journal = storage.journal
        self._ledger = storage.ledger
        self._dead_letters = storage.dead_letters
        self._handover = DispatchTransaction(storage.client, storage.journal, storage.ledger, consumer)
        self._one_redis = outbox.one_redis
        self._outbox = outbox
        self._registry = registry
        self._counters = counters
        self._settings = settings
        self._consumer = consumer
        self._reread_pending = True
        self._limit = min(_FIRST_LIMIT, settings.batch_size)
        #: Entries read while the batch before them was under way.
        self._ahead: list[Entry] = []
        #: The batch whose handing over has not been confirmed.
        self._handed_over: Batch | None = None
        #: The queue that is too long for another message; dispatch waits for it.
        self.full_queue: str | None = None
        self._pace = LogThrottle()

    def reread_pending(self) -> None:
        """Begin the next step with the entries this consumer holds: after a failure, or a claim."""
        self._reread_pending = True

    def step(self) -> int:
        """Dispatch one batch, or wait ``block_ms`` for the first event or a place in a queue.

        While there is a backlog the next batch is read, and this one made, while the one before is handed over.

        Returns:
            The number of entries dispatched, or on their way.

        Raises:
            JournalLost: The group is gone.
            Exception: Redis or the broker failed. What was not acknowledged is done again by the next step.
        """
        try:
            entries = self._next_entries()
            if self._dispatch(entries, read_on=not self._reread_pending):
                return len(entries)
        except _Overtaken:
            extra = log_fields(Action.ENTRIES_OWNERSHIP_LOST, group=self._settings.group, consumer=self._consumer)
            log.info("entries of group %s have changed hands: read again", self._settings.group, extra=extra)
            self._start_over()
            return 0
        except BaseException:
            # Also after a failed read: the server may have handed out entries whose reply was lost.
            self._start_over()
            # A broker with little room takes a small batch where it refuses a large one after its first half.
            self._limit = max(1, self._limit // 2)
            raise
        self._start_over()
        self._limit = 1  # one entry is enough to ask again
        time.sleep(self._settings.block_ms / 1000)
        return 0

    def finish(self) -> None:
        """Dispatch what was read ahead, and read no more.

        Raises:
            Exception: Redis or the broker failed. What was not acknowledged is left to other consumers.
        """
        try:
            while self._ahead or self._handover.under_way:
                entries, self._ahead = self._ahead, []
                if not self._dispatch(entries, read_on=False):
                    return
        except _Overtaken:
            return
        finally:
            self._handover.close()

    def close(self) -> None:
        """Give up what is under way."""
        self._handover.close()

    def _start_over(self) -> None:
        self._handover.close()
        self._ahead, self._handed_over = [], None
        self._reread_pending = True

    def _next_entries(self) -> list[Entry]:
        if self._reread_pending:
            self._settle()
            self._ahead = []
            self._handover.open()
            entries = self._journal.pending_entries(self._consumer, self._limit)
            self._reread_pending = bool(entries)
            return entries
        if self._ahead:
            entries, self._ahead = self._ahead, []
            return entries
        self._handover.open()
        return self._journal.read(self._consumer, self._limit, self._settings.block_ms)

    def _dispatch(self, entries: Sequence[Entry], *, read_on: bool) -> bool:
        """Send the messages of *entries* and acknowledge them; False, and nothing done, while a queue is full."""
        # With a limit, what is under way must have arrived before the queue is measured.
        backlog = read_on and len(entries) >= _BACKLOG and self._settings.max_queue_length is None
        if backlog and not self._handover.under_way:
            self._handover.begin([], [], read=self._limit)  # while the first batch of a backlog is made
        self._outbox.refresh()
        batch = Batch()
        for entry in entries:
            self._add(entry, batch)
        if self._held_back(batch):
            return False
        ahead = self._settle()
        self._send(batch)
        self._adapt_limit(entries, batch)
        more = self._limit if backlog and ahead else 0
        if batch.pushed or more:
            self._handover.begin(batch.pushed, batch.pushes, read=more)
        if batch.pushed:
            self._handed_over = batch
        else:
            self._count(batch)
        self._ahead = ahead or self._settle()  # with nothing to do meanwhile, wait
        return True

    def _send(self, batch: Batch) -> None:
        for refused in self._outbox.send(batch.messages):
            batch.refuse(refused)
        # Not before: what is tried again, while the broker is away, would be kept and counted again and again.
        for letter in batch.letters:
            self._park(letter)
        if batch.sent:
            self._ledger.sent(batch.sent, [message.listed for message in batch.messages])

    def _settle(self) -> list[Entry]:
        """Wait for the answer to what was handed over; return the entries that came with it.

        Raises:
            _Overtaken: What this consumer has read may have gone to another.
        """
        if not self._handover.under_way:
            return []
        batch, self._handed_over = self._handed_over, None
        answer = self._handover.finish()
        if batch is not None and answer.committed:
            self._count(batch)
        if answer.ownership_lost:
            raise _Overtaken
        return answer.entries

    def _count(self, batch: Batch) -> None:
        if lost := batch.counts["lost", ""]:  # not before: what is tried again would be told again
            extra = log_fields(Action.EVENT_LOST, group=self._settings.group, consumer=self._consumer, count=lost)
            log.error("%d journal entries were removed before they were dispatched: lost", lost, extra=extra)
        batch.count(self._counters, self._handover.now_ms)

    def _held_back(self, batch: Batch) -> bool:
        limit = self._settings.max_queue_length
        if limit is None:
            return False
        queues = sorted({message.route.queue for message in batch.pushes + batch.messages} - {""})
        full = next((queue for queue in queues if self._outbox.waiting(queue) >= limit), None)
        if full is not None:
            self._counters.add("dispatch_backpressure")
            # A queue that is worked off more slowly than events come has room now and then, for a moment.
            if full != self.full_queue and self._pace.allow(full):
                extra = log_fields(
                    Action.DISPATCH_BACKPRESSURE, group=self._settings.group, consumer=self._consumer, queue=full
                )
                text = "dispatch waits: queue %s has %d messages or more; the journal keeps"
                log.warning(text, full, limit, extra=extra)
        self.full_queue = full
        return full is not None

    def _adapt_limit(self, entries: Sequence[Entry], batch: Batch) -> None:
        stamped = sum(len(message.stamped) for message in batch.pushes + batch.messages)
        size = max(sum(len(entry.data or b"") for entry in entries), stamped)
        if size > BATCH_BYTES:
            self._limit = max(1, len(entries) * BATCH_BYTES // size)
        elif len(entries) >= self._limit:
            self._limit = min(2 * self._limit, self._settings.batch_size)

    def _add(self, entry: Entry, batch: Batch) -> None:
        messages = self._messages(entry, batch)
        if self._one_redis and all([message.stamped for message in messages]):  # noqa: C419  # a generator costs more
            batch.pushed.append(entry.entry_id)
            batch.pushes += messages
        else:
            batch.sent.append(entry.entry_id)
            batch.messages += messages

    def _messages(self, entry: Entry, batch: Batch) -> list[Message]:
        if entry.group not in (None, self._settings.group):
            return []  # a replay for another group
        if entry.data is None:
            batch.counts["lost", ""] += 1
            return []
        try:
            stored = self._admission.read(entry)
        except InvalidEvent as error:
            batch.letters.append(DeadLetter.of_message(error.reason, str(error), "journal", entry.data))
            return []
        handlers = self._handlers(entry, stored, batch)
        messages = []
        for handler in handlers:
            reason = "predicate_failed"
            try:
                if handler.where is not None and not handler.where(stored.event):
                    continue
                reason = "message_failed"
                messages.append(self._outbox.prepare(handler, stored, entry.entry_id))
            except Exception as error:  # noqa: BLE001  # user code and user options: one bad handler must not stop the rest
                batch.bury(reason, f"{type(error).__name__}: {error}", stored, handler.task_name, self._settings.group)
        return messages

    def _handlers(self, entry: Entry, stored: EncodedEvent, batch: Batch) -> Sequence[Handler]:
        """Return the handlers that *entry* is for."""
        if entry.group is not None:
            batch.counts["replayed", stored.type] += 1
        if entry.handler is None:
            handlers = self._registry.matching(stored.type)
            if not handlers:
                batch.counts["no_handler", stored.type] += 1
            return handlers
        handler = self._registry.get(entry.handler)
        if handler is None:
            # As during a deployment: the dead letter that was replayed is gone, so another keeps the event.
            text = "this subscriber has no such handler"
            batch.bury("no_handler", text, stored, entry.handler, self._settings.group)
            return ()
        return (handler,)

    def _park(self, letter: DeadLetter) -> None:
        letter = self._dead_letters.redacted_by(letter)
        is_new = self._dead_letters.bury(letter, Ended()) if letter.task_id else self._dead_letters.add(letter)
        if not is_new:
            return  # it was counted and told when it was
        self._counters.add("dead_lettered", event_type=letter.event_type)
        extra = dead_letter_fields(Action.DEAD_LETTER, letter, self._settings.group)
        place = letter.handler or letter.origin
        log.warning("dead letter (%s): %s %s", letter.reason, place, letter.detail, extra=extra)


class _Overtaken(Exception):
    """Entries have changed hands: those at hand may be another's by now."""

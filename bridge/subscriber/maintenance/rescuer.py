"""Redispatch: tasks that were sent, and whose messages were lost before they ended, are sent again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Container, Sequence
from dataclasses import replace

from bridge.broker import Message, Outbox
from bridge.bus import Admission
from bridge.errors import InvalidEvent
from bridge.events import EncodedEvent
from bridge.handlers import Registry, detail_of, task_id_for
from bridge.storage import DeadLetter, Entry, LedgerEntry, Overdue, Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.members import Members
from bridge.telemetry import Action, Counters, log_fields

log = logging.getLogger(__name__)

#: Overdue tasks per round; the event of each may have a megabyte.
_ROUND_TASKS = 100
#: No further round begins after this time: dispatch waits meanwhile, and a million tasks may be overdue.
_MAX_TIME_S = 1.0
#: Longest wait for a copy, in multiples of ``redispatch_after_s``.
_MAX_WAIT_FACTOR = 8


class Rescuer:
    """Sends overdue tasks of one group again. Used by one thread, and by the leader of the group only.

    A message that still waits should not be sent again: a duplicate would only lengthen the queue. Queues are FIFO, and
    the ledger records, per queue, the send time of the newest task that has started. A task sent more than ``lease_s``
    before that time has left the queue. A later one still waits if the queue is not empty or not known, or if its tasks
    go on starting: workers fetch messages long before they start them. A running task has a lease. All other overdue
    tasks are sent again with their old task ids. If the first message arrives after all, the done mark or the lease
    makes it harmless.

    Which messages workers hold is not known. So a wrong decision must not be repeated again and again: each copy is
    waited for twice as long as the message before, but not for longer than the event exists. A task that is given up in
    the end gets a dead letter, but does not end: it may still wait somewhere.

    Arguments:
        storage: The ledger, and the events of its tasks; the settings have the ``max_redispatches``.
        outbox: Makes and sends the messages.
        registry: The handlers of this application.
        dead_letters: Writes those of tasks that are not sent again.
        counters: Raises ``redispatched``.
        members: The other subscribers, which may have further handlers.
    """

    def __init__(
        self,
        storage: Storage,
        outbox: Outbox,
        registry: Registry,
        dead_letters: DeadLetterWriter,
        counters: Counters,
        members: Members,
    ) -> None:
        self._members = members
        self._admission = Admission(storage.settings)
        self._journal = storage.journal
        self._event_keys = storage.event_keys
        self._ledger = storage.ledger
        self._dead_letters = dead_letters
        self._outbox = outbox
        self._registry = registry
        self._counters = counters
        self._settings = storage.settings
        self._redispatch_ms = int(storage.settings.redispatch_after_s * 1000)

    def rescue(self, stop: threading.Event) -> None:
        """Redispatch overdue tasks, the longest overdue first, for about a second or until *stop* is set.

        Raises:
            Exception: Redis or the broker failed; the next call continues.
        """
        deadline = time.monotonic() + _MAX_TIME_S
        left = 0  # tasks of other subscribers, which stay overdue
        while not stop.is_set() and (overdue := self._ledger.find_overdue(_ROUND_TASKS, left)):
            own = self._own(overdue)
            left += len(overdue) - len(own)
            if own:
                self._redispatch(self._ledger.sweep_overdue(own, self._waiting(own)))
            if time.monotonic() > deadline:
                return

    def _own(self, overdue: Sequence[Overdue]) -> list[Overdue]:
        """Return the tasks without those whose handler only another subscriber has, which will be the leader, too."""
        return [
            task
            for task in overdue
            if self._registry.get(task.in_flight.handler) is not None or not self._members.have(task.in_flight.handler)
        ]

    def _waiting(self, overdue: Sequence[Overdue]) -> set[str]:
        """Return the ids of those tasks whose messages still seem to wait, in their queues or in workers."""
        queues = {task.in_flight.queue for task in overdue if not task.left_queue} - {""}
        busy = {queue for queue in queues if self._outbox.waiting(queue) > 0}
        return {task.task_id for task in overdue if self._waits(task, busy)}

    def _waits(self, task: Overdue, busy_queues: Container[str]) -> bool:
        queue = task.in_flight.queue
        if task.left_queue:
            return False
        return task.lane_moves or queue in busy_queues or (queue == "" and not self._is_last_check(task))

    def _is_last_check(self, task: Overdue) -> bool:
        """Whether a task was sent again, and its event would be gone at the next check: this is the time to keep it."""
        return task.in_flight.redispatches > 0 and task.event_left_ms < self._redispatch_ms

    def _redispatch(self, overdue: Sequence[Overdue]) -> None:
        events = self._events(overdue)
        messages: list[Message] = []
        tasks: dict[str, Overdue] = {}
        for task in overdue:
            try:
                messages += self._messages(task, events.get(task.task_id))
            except _Unrecoverable as reason:
                self._give_up(task, reason)
            else:
                tasks[task.task_id] = task
        # A broker that lost messages may also have lost queues and bindings, which kombu declares once per connection.
        self._outbox.close()
        for refused in self._outbox.send(messages):
            message = refused.message
            self._give_up(tasks.pop(message.task_id), _Unrecoverable(refused.reason, refused.detail, message.event))
        if tasks:
            self._ledger.acknowledge_sent([], [self._sent_again(task) for task in tasks.values()])
            self._counters.add_each("redispatched", [message.event.type for message in messages])
            extra = log_fields(Action.TASKS_REDISPATCHED, group=self._settings.group, count=len(messages))
            text = "%d overdue tasks neither ran nor seemed to wait; they were sent again"
            log.warning(text, len(messages), extra=extra)

    def _sent_again(self, task: Overdue) -> LedgerEntry:
        """Return what the ledger lists of a task that was sent again."""
        again = task.in_flight._replace(redispatches=task.in_flight.redispatches + 1)
        event_left_ms = task.event_left_ms - again.delay_ms
        longest_ms = max(self._redispatch_ms, event_left_ms - self._redispatch_ms)
        wait_ms = self._redispatch_ms * min(2**again.redispatches, _MAX_WAIT_FACTOR)
        patience_ms = min(wait_ms, longest_ms) - self._redispatch_ms
        return again.entry(task.task_id, patience_ms)

    def _events(self, overdue: Sequence[Overdue]) -> dict[str, EncodedEvent]:
        """Return the events of tasks, by task id: from the journal, or from their keys if the entry was removed.

        Any publisher may have written a key again since. It is used only if it holds the event that was dispatched.
        """
        entries = self._journal.entries([task.in_flight.entry_id for task in overdue])
        missing = [task.in_flight.event_id for task in overdue if task.in_flight.entry_id not in entries]
        kept, marks = self._event_keys.get_many(missing), self._journal.marks(missing)
        events: dict[str, EncodedEvent] = {}
        for task in overdue:
            entry_id, event_id = task.in_flight.entry_id, task.in_flight.event_id
            event = self._event(entries.get(entry_id) or Entry(entry_id.encode(), kept.get(event_id)))
            mark = marks.get(event_id)
            if event is None or (entry_id not in entries and mark and mark.digest != event.event.digest):
                continue
            handler = self._registry.get(task.in_flight.handler)
            # A task of a replay has another id than the task of the event in the key.
            task_id = task_id_for(self._settings.group, event.id, task.in_flight.handler, event.replay)
            if task.task_id == task_id and (handler is None or handler.matches(event.type)):
                events[task.task_id] = event
        return events

    def _event(self, entry: Entry) -> EncodedEvent | None:
        if entry.data is None:
            return None
        try:
            return self._admission.read(entry)
        except InvalidEvent:  # it was valid before: the key was overwritten, or the settings are stricter now
            return None

    def _messages(self, task: Overdue, event: EncodedEvent | None) -> list[Message]:
        if event is None:
            text = f"cannot be sent again: journal entry {task.in_flight.entry_id} and the event key have expired"
            text += ", or the key holds another event now"
            raise _Unrecoverable("event_expired", text, None)
        if task.in_flight.redispatches >= self._settings.max_redispatches or self._is_last_check(task):
            text = f"sent {task.in_flight.redispatches + 1} times and never ended; it may still wait for a worker"
            raise _Unrecoverable("redispatch_limit", text, event)
        handler = self._registry.get(task.in_flight.handler)
        if handler is None:
            name, event_id, group = task.in_flight.handler, task.in_flight.event_id, self._settings.group
            extra = log_fields(
                Action.UNKNOWN_HANDLER, event_id=event_id, task_id=task.task_id, handler=name, group=group
            )
            text = "Cannot send task %s again: its handler %s is not registered in this process"
            log.error(text, task.task_id, name, extra=extra)
            return []  # a subscriber with the handler may start; this is retried until max_redispatches
        try:
            entry_id, retries = task.in_flight.entry_id.encode(), task.in_flight.retries
            return [self._outbox.prepare(handler, event, entry_id, retries)]
        except BaseException as error:  # user code, which may raise CancelledError or SystemExit too
            raise _Unrecoverable("message_failed", detail_of(error), event) from error

    def _give_up(self, task: Overdue, why: _Unrecoverable) -> None:
        """Write a dead letter for a task, which may still run: its message may wait where the ledger cannot see it.

        If Redis refuses the dead letter, other overdue tasks come first.
        """
        handler, task_id, event = task.in_flight.handler, task.task_id, why.event
        if event is None:
            event_id = task.in_flight.event_id
            dead_letter = DeadLetter(why.reason, why.detail, "ledger", b"", 0, event_id, "", handler, task_id)
        else:
            dead_letter = DeadLetter.of_event(why.reason, why.detail, event, event.data, handler, task_id)
        dead_letter = replace(dead_letter, attempts=task.in_flight.redispatches + 1)
        if not self._dead_letters.write(dead_letter, ended=None):
            self._ledger.postpone(task_id, self._dead_letters.retry_s)


class _Unrecoverable(Exception):
    """Why a task must not or cannot be sent again."""

    def __init__(self, reason: str, detail: str, event: EncodedEvent | None) -> None:
        super().__init__(reason, detail, event)
        self.reason = reason
        self.detail = detail
        self.event = event

"""Recovery: tasks that were sent and have not ended in time are sent again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from bridge.broker import Message, Outbox
from bridge.bus import Admission
from bridge.errors import InvalidEvent
from bridge.events import EncodedEvent
from bridge.handlers import Registry, task_id_for
from bridge.storage import DeadLetter, Ended, Entry, Overdue, Storage, dead_letter_fields
from bridge.telemetry import Action, Counters, log_fields

log = logging.getLogger(__name__)

#: Tasks looked at in one round; an overdue one may have a megabyte.
_SWEEP_TASKS = 100
#: Longest sweep, but for its last round: dispatch waits for it, and a million tasks may be overdue.
_SWEEP_S = 1.0


class Rescuer:
    """Walks the ledger of one group. Used by one thread, of one subscriber of the group at a time.

    A message that waits in a long queue is not lost, and another copy would make the queue longer still. The ledger
    knows when the newest task of each queue that has begun was sent. Queues are worked off in order, so a task sent a
    lease before that one has left the queue, and one sent later waits there unless the queue is empty. Tasks that run
    show it by their lease. What is left, neither run nor waiting, is sent again under its old task id; should the
    first message come after all, the done mark or the lease makes it harmless.

    Arguments:
        storage, outbox, registry, counters: Its parts.
    """

    def __init__(
        self,
        storage: Storage,
        outbox: Outbox,
        registry: Registry,
        counters: Counters,
    ) -> None:
        self._admission = Admission(storage.settings)
        self._journal = storage.journal
        self._event_keys = storage.event_keys
        self._ledger = storage.ledger
        self._dead_letters = storage.dead_letters
        self._outbox = outbox
        self._registry = registry
        self._counters = counters
        self._settings = storage.settings

    def rescue(self, stop: threading.Event) -> None:
        """Deal with overdue tasks, the longest overdue first, for a second or until *stop* is set.

        Raises:
            Exception: Redis or the broker failed; the next sweep goes on.
        """
        deadline = time.monotonic() + _SWEEP_S
        while not stop.is_set() and (overdue := self._ledger.find_overdue(_SWEEP_TASKS)):
            lost = self._ledger.sweep_overdue(overdue, self._waiting(overdue))
            self._redispatch([task for task in overdue if task.task_id in lost])
            if time.monotonic() > deadline:
                return

    def _waiting(self, overdue: Sequence[Overdue]) -> set[str]:
        queues = {task.in_flight.queue for task in overdue if not task.left_queue} - {""}
        busy = {queue for queue in queues if self._outbox.waiting(queue) > 0}
        return {task.task_id for task in overdue if not task.left_queue and task.in_flight.queue in busy}

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
        self._outbox.close()  # a broker that lost messages may have lost queues and bindings, which kombu declares once
        for refused in self._outbox.send(messages):
            message = refused.message
            self._give_up(tasks.pop(message.task_id), _Unrecoverable(refused.reason, refused.detail, message.event))
        if tasks:
            again = {
                name: task.in_flight._replace(redispatches=task.in_flight.redispatches + 1)
                for name, task in tasks.items()
            }
            self._ledger.acknowledge_sent([], [task.entry(task_id) for task_id, task in again.items()])
            self._counters.add_each("redispatched", [message.event.type for message in messages])
            extra = log_fields(Action.TASKS_REDISPATCHED, group=self._settings.group, count=len(messages))
            text = "%d overdue tasks neither ran nor waited in their queue: sent again"
            log.warning(text, len(messages), extra=extra)

    def _events(self, overdue: Sequence[Overdue]) -> dict[str, EncodedEvent]:
        """Return the events of tasks, by task id: from the journal or, as after its deletion, from their keys."""
        entries = self._journal.entries([task.in_flight.entry_id for task in overdue])
        missing = [task.in_flight.event_id for task in overdue if task.in_flight.entry_id not in entries]
        kept = self._event_keys.get_many(missing)
        events: dict[str, EncodedEvent] = {}
        for task in overdue:
            key = Entry(task.in_flight.entry_id.encode(), kept.get(task.in_flight.event_id))
            event = self._event(entries.get(task.in_flight.entry_id, key))
            # A key knows nothing of a replay, whose tasks have ids of their own.
            group, handler = self._settings.group, task.in_flight.handler
            if event is not None and task.task_id == task_id_for(group, event.id, handler, event.replay):
                events[task.task_id] = event
        return events

    def _event(self, entry: Entry) -> EncodedEvent | None:
        if entry.data is None:
            return None
        try:
            return self._admission.read(entry)
        except InvalidEvent:  # let in when it was dispatched: the key was overwritten, or these settings are stricter
            return None

    def _messages(self, task: Overdue, event: EncodedEvent | None) -> list[Message]:
        if task.in_flight.redispatches >= self._settings.max_redispatches:
            raise _Unrecoverable(
                "redispatch_limit", f"sent {task.in_flight.redispatches + 1} times and never ended", event
            )
        if event is None:
            text = f"journal entry {task.in_flight.entry_id} is gone, and so is the key: cannot be sent again"
            raise _Unrecoverable("event_expired", text, None)
        handler = self._registry.get(task.in_flight.handler)
        if handler is None:
            name, event_id, group = task.in_flight.handler, task.in_flight.event_id, self._settings.group
            extra = log_fields(
                Action.UNKNOWN_HANDLER, event_id=event_id, task_id=task.task_id, handler=name, group=group
            )
            log.error("task %s cannot be sent again: there is no handler %s here", task.task_id, name, extra=extra)
            return []  # another subscriber may know it; asked for again until max_redispatches
        try:
            return [self._outbox.prepare(handler, event, task.in_flight.entry_id.encode())]
        except Exception as error:
            raise _Unrecoverable("message_failed", f"{type(error).__name__}: {error}", event) from error

    def _give_up(self, task: Overdue, why: _Unrecoverable) -> None:
        """Make a dead letter of a task, which is its end if the letter has the event: it can be replayed then."""
        handler, task_id, event = task.in_flight.handler, task.task_id, why.event
        attempts = task.in_flight.redispatches + 1
        if event is None:
            letter = DeadLetter(
                why.reason,
                why.detail,
                "ledger",
                b"",
                0,
                task.in_flight.event_id,
                "",
                handler,
                task_id,
                attempts=attempts,
            )
        else:
            letter = DeadLetter.of_event(why.reason, why.detail, event, event.data, handler, task_id, attempts=attempts)
        letter = letter.redacted_by(self._settings.redaction)
        self._dead_letters.end_task_with(letter, Ended(queue=task.in_flight.queue) if event is not None else None)
        self._counters.add("dead_lettered", event_type=event.type if event else "")
        text = "dead letter (%s): %s of event %s: %s"
        extra = dead_letter_fields(Action.DEAD_LETTER, letter, self._settings.group)
        log.error(text, why.reason, handler, task.in_flight.event_id, letter.detail, extra=extra)


class _Unrecoverable(Exception):
    """A task that sending again does not help."""

    def __init__(self, reason: str, detail: str, event: EncodedEvent | None) -> None:
        super().__init__(reason, detail, event)
        self.reason = reason
        self.detail = detail
        self.event = event

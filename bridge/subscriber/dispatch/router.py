"""Routing: which task messages and dead letters journal entries become."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bridge.broker import Message, Outbox, Refused
from bridge.bus import Admission
from bridge.config import BridgeSettings
from bridge.errors import InvalidEvent
from bridge.events import EncodedEvent
from bridge.handlers import Handler, Registry, detail_of, task_id_for
from bridge.storage import DeadLetter, Entry, HandOver
from bridge.subscriber.members import Members


@dataclass
class Batch:
    """What some journal entries become. Each entry is in one of the two lists of ids, even without a message.

    Those that other subscribers have further handlers for are handed over instead.
    """

    #: Entries whose messages are all stamped, and these messages: one transaction pushes them and acknowledges.
    push_ids: list[bytes] = field(default_factory=list)
    to_push: list[Message] = field(default_factory=list)
    #: The other entries, acknowledged after the outbox has sent their messages.
    send_ids: list[bytes] = field(default_factory=list)
    to_send: list[Message] = field(default_factory=list)
    handed_over: list[HandOver] = field(default_factory=list)
    #: Those of the entries in the two lists that were handed over to this subscriber.
    finished: list[bytes] = field(default_factory=list)
    #: Dead letters, each with the entry that it stands for.
    dead_letters: list[tuple[bytes, DeadLetter]] = field(default_factory=list)
    #: Entries to count once they are acknowledged, each with the name of a counter and the event type.
    counts: list[tuple[bytes, str, str]] = field(default_factory=list)
    #: Whether there are entries that were moved in a repair of the journal, maybe after some of their tasks were sent.
    has_moved: bool = False

    @property
    def task_ids(self) -> list[str]:
        """The tasks of the messages and dead letters."""
        tasks = [message.task_id for message in self.to_push + self.to_send]
        return tasks + [dead_letter.task_id for _, dead_letter in self.dead_letters if dead_letter.task_id]

    def leave_out(self, task_ids: Collection[str]) -> None:
        """Remove the messages and dead letters of these tasks, which were sent before."""
        self.to_push = [message for message in self.to_push if message.task_id not in task_ids]
        self.to_send = [message for message in self.to_send if message.task_id not in task_ids]
        self.dead_letters = [row for row in self.dead_letters if row[1].task_id not in task_ids]

    def leave_pending(self, entry_ids: Collection[bytes]) -> None:
        """Do not acknowledge or hand over these entries. Their messages are sent all the same."""
        self.push_ids = [entry_id for entry_id in self.push_ids if entry_id not in entry_ids]
        self.send_ids = [entry_id for entry_id in self.send_ids if entry_id not in entry_ids]
        self.handed_over = [one for one in self.handed_over if one.entry_id not in entry_ids]
        self.finished = [entry_id for entry_id in self.finished if entry_id not in entry_ids]
        self.counts = [row for row in self.counts if row[0] not in entry_ids]


class Router:
    """Makes a task message for every handler of every event. Used by one thread.

    It does not send, store or count anything: a batch that fails later is read and routed again.

    Arguments:
        outbox: Makes the messages.
        registry: The handlers of this process.
        settings: ``group``, and which events are accepted.
        members: The handlers of the other subscribers.
    """

    def __init__(self, outbox: Outbox, registry: Registry, settings: BridgeSettings, members: Members) -> None:
        self._members = members
        self._outbox = outbox
        self._registry = registry
        self._group = settings.group
        self._admission = Admission(settings)

    def route(self, entries: Sequence[Entry]) -> Batch:
        """Return the messages and dead letters of *entries*, in their order."""
        self._outbox.refresh()
        batch, one_redis = Batch(), self._outbox.one_redis
        for entry in entries:
            messages = self._messages(entry, batch)
            pushed = one_redis and all([message.stamped for message in messages])  # noqa: C419  # a generator costs more
            if pushed:
                batch.to_push += messages
            else:
                batch.to_send += messages
            if batch.handed_over and batch.handed_over[-1].entry_id == entry.entry_id:
                continue
            if pushed:
                batch.push_ids.append(entry.entry_id)
            else:
                batch.send_ids.append(entry.entry_id)
            if entry.dispatched_to is not None:
                batch.finished.append(entry.entry_id)
        return batch

    def refuse(self, refused: Sequence[Refused], batch: Batch) -> None:
        """Make dead letters of messages of *batch* that cannot be sent."""
        left_out = {id(one.message) for one in refused}
        batch.to_send = [message for message in batch.to_send if id(message) not in left_out]
        batch.dead_letters += [
            (message.entry_id, self._dead_letter(reason, detail, message.event, message.route.task.name))
            for message, reason, detail in refused
        ]

    def _messages(self, entry: Entry, batch: Batch) -> list[Message]:
        if entry.group not in (None, self._group):
            return []  # a replay for another group
        if entry.done is not None:
            if self._group in entry.done:
                return []  # this one had acknowledged it before it was moved
            batch.has_moved = True
        if entry.data is None:
            batch.counts.append((entry.entry_id, "lost", ""))
            return []
        try:
            encoded = self._admission.read(entry)
        except InvalidEvent as error:
            dead_letter = DeadLetter.of_message(error.reason, str(error), "journal", entry.data)
            batch.dead_letters.append((entry.entry_id, dead_letter))
            return []
        if encoded.repaired or (encoded.traced_by is not None and not encoded.trace_headers):
            name = "repaired" if encoded.repaired else "invalid_trace"
            batch.counts.append((entry.entry_id, name, encoded.type))
        messages = []
        for handler in self._handlers(entry, encoded, batch):
            reason = "predicate_failed"
            try:
                if handler.where is not None and not handler.where(encoded.event):
                    continue
                reason = "message_failed"
                messages.append(self._outbox.prepare(handler, encoded, entry.entry_id))
            except BaseException as error:  # noqa: BLE001  # user code, which may raise CancelledError or SystemExit too
                dead_letter = self._dead_letter(reason, detail_of(error), encoded, handler.task_name)
                batch.dead_letters.append((entry.entry_id, dead_letter))
        return messages

    def _handlers(self, entry: Entry, encoded: EncodedEvent, batch: Batch) -> Sequence[Handler]:
        """Return the handlers of this subscriber that *entry* is for; hand it over if others have further ones."""
        if entry.group is not None and entry.dispatched_to is None:
            batch.counts.append((entry.entry_id, "replayed", encoded.type))
        if entry.handler is not None:
            return self._addressed(entry, entry.handler, encoded, batch)
        handlers = self._registry.matching(encoded.type)
        if entry.dispatched_to is None and not self._members.differ:
            if not handlers:
                batch.counts.append((entry.entry_id, "no_handler", encoded.type))
            return handlers
        before = entry.dispatched_to or frozenset()
        after = before.union(handler.task_name for handler in handlers)
        if member := self._members.for_handlers_of(encoded.type, after, entry.entry_id):
            self._hand_over(HandOver(entry.entry_id, member, after), encoded, batch)
        elif not after:
            batch.counts.append((entry.entry_id, "no_handler", encoded.type))
        return [handler for handler in handlers if handler.task_name not in before]

    def _addressed(self, entry: Entry, task_name: str, encoded: EncodedEvent, batch: Batch) -> Sequence[Handler]:
        """Return the one handler that *entry* is for; hand it over if only another subscriber has it."""
        handler = self._registry.get(task_name)
        if handler is not None and handler.matches(encoded.type):
            return [handler]
        if member := self._members.for_handler(task_name, encoded.type, entry.entry_id):
            self._hand_over(HandOver(entry.entry_id, member, frozenset()), encoded, batch)
            return []
        # Both happen during a deployment. The replay deleted the dead letter of this event, so another one keeps it.
        if handler is None:
            detail = "no subscriber of this group has such a handler"
            dead_letter = self._dead_letter("no_handler", detail, encoded, task_name)
        else:
            # The event was verified as one of its type. For this handler it may be forged: it ends no task of it.
            detail = f"this handler receives no events of type {encoded.type}"
            dead_letter = DeadLetter.of_event("no_handler", detail, encoded, encoded.data, task_name, "")
        batch.dead_letters.append((entry.entry_id, dead_letter))
        return []

    def _hand_over(self, handed_over: HandOver, encoded: EncodedEvent, batch: Batch) -> None:
        batch.handed_over.append(handed_over)
        batch.counts.append((handed_over.entry_id, "handed_over", encoded.type))

    def _dead_letter(self, reason: str, detail: str, encoded: EncodedEvent, handler: str) -> DeadLetter:
        task_id = task_id_for(self._group, encoded.id, handler, encoded.replay)
        return DeadLetter.of_event(reason, detail, encoded, encoded.data, handler, task_id)

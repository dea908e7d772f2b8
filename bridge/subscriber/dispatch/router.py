"""Routing: which task messages and dead letters journal entries become."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bridge.broker import Message, Outbox, Refused
from bridge.bus import Admission
from bridge.config import BridgeSettings
from bridge.errors import InvalidEvent
from bridge.events import EncodedEvent
from bridge.handlers import Handler, Registry, task_id_for
from bridge.storage import DeadLetter, Entry


@dataclass
class Batch:
    """What some journal entries become. Each entry is in one of the two lists of ids, even without a message."""

    #: Entries whose messages are all stamped, and these messages: one transaction pushes them and acknowledges.
    push_ids: list[bytes] = field(default_factory=list)
    to_push: list[Message] = field(default_factory=list)
    #: The other entries, acknowledged after the outbox has sent their messages.
    send_ids: list[bytes] = field(default_factory=list)
    to_send: list[Message] = field(default_factory=list)
    #: Dead letters, each with the entry that it stands for.
    dead_letters: list[tuple[bytes, DeadLetter]] = field(default_factory=list)
    #: Entries to count once they are acknowledged, each with the name of a counter and the event type.
    counts: list[tuple[bytes, str, str]] = field(default_factory=list)

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
        """Do not acknowledge these entries. Their messages are sent all the same."""
        self.push_ids = [entry_id for entry_id in self.push_ids if entry_id not in entry_ids]
        self.send_ids = [entry_id for entry_id in self.send_ids if entry_id not in entry_ids]
        self.counts = [row for row in self.counts if row[0] not in entry_ids]


class Router:
    """Makes a task message for every handler of every event. Used by one thread.

    It does not send, store or count anything: a batch that fails later is read and routed again.

    Arguments:
        outbox: Makes the messages.
        registry: The handlers of this process.
        settings: ``group``, and which events are accepted.
    """

    def __init__(self, outbox: Outbox, registry: Registry, settings: BridgeSettings) -> None:
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
            if one_redis and all([message.stamped for message in messages]):  # noqa: C419  # a generator costs more
                batch.push_ids.append(entry.entry_id)
                batch.to_push += messages
            else:
                batch.send_ids.append(entry.entry_id)
                batch.to_send += messages
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
        if entry.group not in (None, self._group) or self._group in entry.done:
            return []  # a replay for another group, or an entry that this one had acknowledged before it was moved
        if entry.data is None:
            batch.counts.append((entry.entry_id, "lost", ""))
            return []
        try:
            encoded = self._admission.read(entry)
        except InvalidEvent as error:
            dead_letter = DeadLetter.of_message(error.reason, str(error), "journal", entry.data)
            batch.dead_letters.append((entry.entry_id, dead_letter))
            return []
        messages = []
        for handler in self._handlers(entry, encoded, batch):
            reason = "predicate_failed"
            try:
                if handler.where is not None and not handler.where(encoded.event):
                    continue
                reason = "message_failed"
                messages.append(self._outbox.prepare(handler, encoded, entry.entry_id))
            except BaseException as error:  # noqa: BLE001  # user code, which may raise CancelledError or SystemExit too
                detail = f"{type(error).__name__}: {error}"
                dead_letter = self._dead_letter(reason, detail, encoded, handler.task_name)
                batch.dead_letters.append((entry.entry_id, dead_letter))
        return messages

    def _handlers(self, entry: Entry, encoded: EncodedEvent, batch: Batch) -> Sequence[Handler]:
        """Return the handlers that *entry* is for."""
        if entry.group is not None:
            batch.counts.append((entry.entry_id, "replayed", encoded.type))
        if entry.handler is None:
            handlers = self._registry.matching(encoded.type)
            if not handlers:
                batch.counts.append((entry.entry_id, "no_handler", encoded.type))
            return handlers
        handler = self._registry.get(entry.handler)
        # Both happen during a deployment. The replay deleted the dead letter of this event, so another one keeps it.
        if handler is None:
            detail = "this subscriber has no such handler"
            dead_letter = self._dead_letter("no_handler", detail, encoded, entry.handler)
            batch.dead_letters.append((entry.entry_id, dead_letter))
            return []
        if not handler.matches(encoded.type):
            # The event was verified as one of its type. For this handler it may be forged: it ends no task of it.
            detail = f"this handler receives no events of type {encoded.type}"
            dead_letter = DeadLetter.of_event("no_handler", detail, encoded, encoded.data, entry.handler, "")
            batch.dead_letters.append((entry.entry_id, dead_letter))
            return []
        return [handler]

    def _dead_letter(self, reason: str, detail: str, encoded: EncodedEvent, handler: str) -> DeadLetter:
        task_id = task_id_for(self._group, encoded.id, handler, encoded.replay)
        return DeadLetter.of_event(reason, detail, encoded, encoded.data, handler, task_id)

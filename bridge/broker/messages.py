"""A task message and the route it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

from bridge.broker.stamp import Stamp
from bridge.broker.templates import Template
from bridge.events import EncodedEvent
from bridge.handlers import EventTask
from bridge.storage import InFlightTask, LedgerEntry


class Route(NamedTuple):
    """Where the messages of one handler and event type go: options for Celery, and what comes of them."""

    task: EventTask
    options: Mapping[str, Any]
    queue: str
    priority: int
    delay_ms: int
    #: None when Celery has to make the message itself.
    template: Template | None
    #: What the ledger keeps of a task; to be filled in with the ids of the event and of its journal entry.
    ledger_stamp: Stamp

    @classmethod
    def of(
        cls, task: EventTask, options: Mapping[str, Any], queue: Any, priority: int | None, template: Template | None
    ) -> Route:
        """Return the route of messages to *queue*, the name of a queue or kombu's object; None: it has no name."""
        name = queue if isinstance(queue, str) else getattr(queue, "name", "")
        delay_ms = int(float(options.get("countdown") or 0) * 1000)

        def in_ledger(event_id: str, entry_id: str) -> bytes:
            return InFlightTask(task.name, event_id, entry_id, name, priority or 0, delay_ms).encode()

        stamp = Stamp.from_example(in_ledger, 2)
        return cls(task, options, name, priority or 0, delay_ms, template, stamp)


class Message(NamedTuple):
    """A task message ready to go: nothing about its event can fail any more."""

    route: Route
    task_id: str
    event: EncodedEvent
    #: Of the journal.
    entry_id: bytes
    #: Content type, encoding and body, for the broker's client.
    content: tuple[str, str, bytes] | None = None
    #: What to push in the broker's Redis; empty when the message has to go through the broker's client.
    stamped: bytes = b""

    @property
    def queue_key(self) -> str:
        """The list of Redis that :attr:`stamped` is pushed to."""
        return cast("Template", self.route.template).queue_key

    @property
    def ledger_entry(self) -> LedgerEntry:
        """What the ledger keeps of the task."""
        route = self.route
        in_flight = route.ledger_stamp.fill(self.event.id.encode(), self.entry_id)  # valid ids need no quotes in JSON
        return LedgerEntry(self.task_id, in_flight, route.delay_ms)


class Refused(NamedTuple):
    """A message that cannot be sent, why, and the *detail* of that for a person."""

    message: Message
    reason: Literal["message_failed", "unroutable"]
    detail: str


def by_queue(messages: Iterable[Message]) -> dict[str, list[bytes]]:
    """Return what to push for stamped *messages*: the key of each queue, and the texts for it."""
    queues: defaultdict[str, list[bytes]] = defaultdict(list)
    for message in messages:
        queues[message.queue_key].append(message.stamped)
    return queues

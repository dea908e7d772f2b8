"""A task message, and the route that it takes."""

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
    """Where the messages of one handler and event type go: the options for Celery, and the results of these options."""

    task: EventTask
    options: Mapping[str, Any]
    queue: str
    priority: int
    delay_ms: int
    #: None if Celery has to make each message.
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
    """A task message that is ready to be sent: its event can no longer cause an error."""

    route: Route
    task_id: str
    event: EncodedEvent
    #: Of the journal entry that holds the event.
    entry_id: bytes
    #: Content type, encoding and body, for kombu; None if the message is stamped, or Celery has to make it.
    content: tuple[str, str, bytes] | None = None
    #: What to push to a list of the broker's Redis; empty if the message has to be published with kombu.
    stamped: bytes = b""
    #: Number of the try that it is for, from 0.
    retries: int = 0

    @property
    def queue_key(self) -> str:
        """Key of the Redis list that :attr:`stamped` is pushed to."""
        return cast("Template", self.route.template).queue_key

    @property
    def ledger_entry(self) -> LedgerEntry:
        """What the ledger keeps of the task."""
        route = self.route
        in_flight = route.ledger_stamp.fill(self.event.id.encode(), self.entry_id)  # valid ids need no quotes in JSON
        return LedgerEntry(self.task_id, in_flight, route.delay_ms)


class Refused(NamedTuple):
    """A message that cannot be sent, the *reason* for its dead letter, and a *detail* for people to read."""

    message: Message
    reason: Literal["message_failed", "unroutable"]
    detail: str


def by_queue(messages: Iterable[Message]) -> dict[str, list[bytes]]:
    """Return what to push for stamped *messages*, by the key of the queue."""
    queues: defaultdict[str, list[bytes]] = defaultdict(list)
    for message in messages:
        queues[message.queue_key].append(message.stamped)
    return queues

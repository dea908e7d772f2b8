"""A task message and the route it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast
from uuid import uuid4

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
    #: What the ledger keeps of a task, encoded, with places for the ids of event and entry.
    pair_stamp: bytes


class Message(NamedTuple):
    """A task message ready to go: nothing about its event can fail any more."""

    route: Route
    task_id: str
    stored: EncodedEvent
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
        """The task, for the ledger."""
        # Ids need no quoting, see fields.py.
        route = self.route
        return LedgerEntry(self.task_id, route.pair_stamp % (self.stored.id.encode(), self.entry_id), route.delay_ms)


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


def _route_of(
    task: EventTask, options: Mapping[str, Any], queue: Any, priority: int | None, template: Template | None
) -> Route:
    name = queue if isinstance(queue, str) else getattr(queue, "name", "")
    delay_ms = int(float(options.get("countdown") or 0) * 1000)
    event_id, entry_id = uuid4().hex, uuid4().hex  # no text that the rest may hold
    pair = InFlightTask(task.name, event_id, entry_id, name, priority or 0, delay_ms).encode().replace(b"%", b"%%")
    pair = pair.replace(event_id.encode(), b"%b").replace(entry_id.encode(), b"%b")
    return Route(task, options, name, priority or 0, delay_ms, template, pair)

"""Journal to Celery: each entry becomes one task message for every handler of its event."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.dead_letters import DeadLetter
from bridge.errors import EventInvalid
from bridge.event import Event
from bridge.handlers import Handler, Registry
from bridge.journal import Entry
from bridge.ledger import Pair
from bridge.messages import Message, Outbox, Refused, task_id_for
from bridge.metrics import Counters
from bridge.settings import BATCH_BYTES, BridgeSettings
from bridge.stores import Stores

log = logging.getLogger(__name__)

#: Entries of the first batch; doubled while batches are full and small.
_FIRST_LIMIT = 32


class Dispatcher:
    """One consumer of the group. Used by one thread.

    An entry is acknowledged after its messages are at the broker, in one step with listing their tasks in the
    ledger. A crash before that sends them again, with the same task ids.

    Arguments:
        stores, outbox, registry, counters: Its parts.
        settings: Batch size, waiting time and ``max_queue_length``.
        consumer: Name within the group; no other live process may use it.
    """

    def __init__(
        self,
        stores: Stores,
        outbox: Outbox,
        registry: Registry,
        counters: Counters,
        settings: BridgeSettings,
        consumer: str,
    ) -> None:
        self._journal = stores.journal
        self._ledger = stores.ledger
        self._dead_letters = stores.dead_letters
        self._outbox = outbox
        self._registry = registry
        self._counters = counters
        self._settings = settings
        self._consumer = consumer
        self._look_at_held = True
        self._limit = min(_FIRST_LIMIT, settings.batch_size)
        #: The queue that is too long for another message; dispatch waits for it.
        self.full_queue: str | None = None

    def look_at_held(self) -> None:
        """Begin the next step with the entries this consumer holds: after a failure, or a claim."""
        self._look_at_held = True

    def step(self) -> int:
        """Dispatch one batch, or wait ``block_ms`` for the first event or a place in a queue.

        Returns:
            The number of entries dispatched.

        Raises:
            JournalLost: The group is gone.
            Exception: Redis or the broker failed. Nothing was acknowledged, so the next step does it again.
        """
        try:
            if self._look_at_held:
                entries = self._journal.held(self._consumer, self._limit)
                self._look_at_held = bool(entries)
            else:
                entries = self._journal.read(self._consumer, self._limit, self._settings.block_ms)
            done = self.dispatch(entries)
        except BaseException:
            # Also after a failed read: the server may have handed out entries whose reply was lost.
            self._look_at_held = True
            # A broker with little room takes a small batch where it refuses a large one after its first half.
            self._limit = max(1, self._limit // 2)
            raise
        if not done:
            self._look_at_held, self._limit = True, 1  # one entry is enough to ask again
            time.sleep(self._settings.block_ms / 1000)
            return 0
        self._adapt_limit(entries)
        return len(entries)

    def dispatch(self, entries: Sequence[Entry]) -> bool:
        """Send the messages of *entries* and acknowledge them; False, and nothing done, while a queue is full."""
        batch = _Batch()
        for entry in entries:
            self._add(entry, batch)
        messages = [message for message, _ in batch.messages]
        if self._held_back(messages):
            return False
        for refused in self._outbox.send(messages):
            batch.refuse(refused)
        # Not before: what is tried again, while the broker is away, would be kept and counted again and again.
        for letter in batch.letters:
            self._park(letter)
        if entries:
            pairs = [(message.task_id, pair) for message, pair in batch.messages]
            self._ledger.sent([entry.entry_id for entry in entries], pairs)
        for name, amount in batch.counts.items():
            self._counters.add(name, amount)
        self._counters.add("dispatched", len(batch.messages))
        return True

    def _held_back(self, messages: Sequence[Message]) -> bool:
        limit = self._settings.max_queue_length
        if limit is None:
            return False
        queues = sorted({message.route.queue for message in messages} - {""})
        full = next((queue for queue in queues if self._outbox.waiting(queue) >= limit), None)
        if full is not None:
            self._counters.add("held_back")
            if full != self.full_queue:
                log.warning("dispatch waits: queue %s has %d messages or more; the journal keeps", full, limit)
        self.full_queue = full
        return full is not None

    def _adapt_limit(self, entries: Sequence[Entry]) -> None:
        size = sum(len(entry.data or b"") for entry in entries)
        if size > BATCH_BYTES:
            self._limit = max(1, len(entries) * BATCH_BYTES // size)
        elif len(entries) == self._limit:
            self._limit = min(2 * self._limit, self._settings.batch_size)

    def _add(self, entry: Entry, batch: _Batch) -> None:
        if entry.group not in (None, self._settings.group):
            return  # a replay for another group
        if entry.data is None:
            batch.counts["lost"] += 1
            log.error("journal entry %s was removed before it was dispatched: its event is lost", entry.entry_id)
            return
        try:
            event = Event.decode(entry.data, max_bytes=len(entry.data))
        except EventInvalid as error:
            batch.letters.append(DeadLetter.of_message(error.reason, str(error), "journal", entry.data))
            return
        handlers: Sequence[Handler] = self._registry.matching(event.type)
        if entry.handler is not None:
            handlers = [handler for handler in self._registry if handler.task_name == entry.handler]
            if not handlers:
                # As during a deployment: the dead letter that was replayed is gone, so another keeps the event.
                text = "this subscriber has no such handler"
                batch.letters.append(self._letter("no_handler", text, event, entry.data, entry.handler))
                return
        batch.counts["unrouted"] += not handlers
        for handler in handlers:
            self._add_message(handler, event, entry, batch)

    def _add_message(self, handler: Handler, event: Event, entry: Entry, batch: _Batch) -> None:
        reason = "where"
        try:
            if handler.where is not None and not handler.where(event):
                return
            reason = "message"
            message = self._outbox.prepare(handler, event)
            batch.messages.append((message, _pair(message, entry)))
        except Exception as error:  # noqa: BLE001  # user code and user options: one bad handler must not stop the rest
            detail, data = f"{type(error).__name__}: {error}", entry.data or b""
            batch.letters.append(self._letter(reason, detail, event, data, handler.task_name))

    def _letter(self, reason: str, detail: str, event: Event, data: bytes, handler: str) -> DeadLetter:
        task_id = task_id_for(self._settings.group, event.id, handler, event.replay)
        return DeadLetter.of_event(reason, detail, event, data, handler, task_id)

    def _park(self, letter: DeadLetter) -> None:
        self._dead_letters.add(letter)
        self._counters.add("dead")
        log.warning("dead letter (%s): %s %s", letter.reason, letter.handler or letter.origin, letter.detail)


@dataclass
class _Batch:
    """What becomes of some entries: messages with what the ledger keeps of them, dead letters, and counts."""

    messages: list[tuple[Message, Pair]] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def refuse(self, refused: Refused) -> None:
        """Make a dead letter of a message that cannot be sent."""
        message, event, task = refused.message, refused.message.event, refused.message.task.name
        self.messages = [one for one in self.messages if one[0] is not message]
        self.letters.append(
            DeadLetter.of_event("message", refused.detail, event, event.encode(), task, message.task_id)
        )


def _pair(message: Message, entry: Entry) -> Pair:
    route = message.route
    return Pair(
        handler=message.task.name,
        event_id=message.event.id,
        entry_id=entry.entry_id.decode(),
        queue=route.queue,
        priority=route.priority,
        delay_ms=int(float(route.options.get("countdown") or 0) * 1000),
    )

"""What becomes of some entries of the journal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bridge.broker import Message, Refused
from bridge.events import EncodedEvent
from bridge.handlers import task_id_for
from bridge.storage import DeadLetter
from bridge.telemetry import Counters


@dataclass
class Batch:
    """What becomes of some entries.

    Those of ``pushed`` are acknowledged as ``pushes`` are pushed; those of ``sent`` after ``messages`` were sent.
    """

    pushed: list[bytes] = field(default_factory=list)
    pushes: list[Message] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    #: Name and event type of a counter to what it rises by; messages aside.
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def count(self, counters: Counters, now_ms: int) -> None:
        """Raise the counters for all of it, which is done.

        Arguments:
            now_ms: By the clock of the server that holds the journal.
        """
        messages = self.pushes + self.messages
        counters.add_each("dispatched", [message.stored.type for message in messages])
        for (name, event_type), amount in self.counts.items():
            counters.add(name, amount, event_type)
        appended_ms = Counter([message.entry_id.partition(b"-")[0] for message in messages])
        counters.dispatched_after((now_ms - int(ms), times) for ms, times in appended_ms.items())

    def refuse(self, refused: Refused) -> None:
        """Make a dead letter of a message that cannot be sent."""
        message = refused.message
        self.messages = [one for one in self.messages if one is not message]
        self.letters.append(
            _letter(refused.reason, refused.detail, message.stored, message.route.task.name, message.task_id)
        )

    def bury(self, reason: str, detail: str, stored: EncodedEvent, handler: str, group: str) -> None:
        """Make a dead letter of an event for which *handler* gets no message."""
        task_id = task_id_for(group, stored.id, handler, stored.replay)
        self.letters.append(_letter(reason, detail, stored, handler, task_id))


def _letter(reason: str, detail: str, stored: EncodedEvent, handler: str, task_id: str) -> DeadLetter:
    return DeadLetter.of_event(reason, detail, stored, stored.data, handler, task_id)

"""What the ledger stores and reports about one task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, NamedTuple

StartResult = Literal["started", "ended", "running", "poisoned", "superseded", "stale"]


class InFlightTask(NamedTuple):
    """One task that was sent: a handler gets an event.

    Arguments:
        handler: Name of the Celery task.
        event_id: Id of its event.
        entry_id: Id of the journal entry that holds the event.
        queue: Where the message was sent; empty when Celery's router decides that while it sends.
        priority: Priority of the message; messages of one queue and priority are consumed in order.
        delay_ms: How long the message delays the task (``countdown``).
        redispatches: How often the message was sent again.
        retried: Whether the task has started and will start again, out of the order of its queue.
        retries: Number of the try that is due, from 0: how often Celery has retried the task.
        given_up: Dead letter of a task that was given up; empty if it was not. If its message arrives after all, the
            task runs, and the dead letter is withdrawn.
    """

    handler: str
    event_id: str
    entry_id: str
    queue: str = ""
    priority: int = 0
    delay_ms: int = 0
    redispatches: int = 0
    retried: bool = False
    retries: int = 0
    given_up: str = ""

    def encode(self) -> bytes:
        """Return the task as JSON."""
        return json.dumps(self._asdict()).encode()

    @classmethod
    def decode(cls, text: bytes) -> InFlightTask:
        """Return the task in this JSON, which another version may have written with other fields."""
        stored = json.loads(text)
        return cls(**{name: stored[name] for name in cls._fields if name in stored})

    def at_try(self, retries: int) -> InFlightTask:
        """Return the task as it is sent again while the try of this number is due. Only the first one is delayed."""
        return self if retries == 0 else self._replace(retries=retries, retried=True, delay_ms=0)

    def entry(self, task_id: str, patience_ms: int = 0) -> LedgerEntry:
        """Return what the ledger lists for this task, which is overdue *patience_ms* later than usual."""
        return LedgerEntry(task_id, self.encode(), self.delay_ms + patience_ms)


class Ended(NamedTuple):
    """How a task ended, as its done mark records it.

    Arguments:
        dead_letter_id: Its dead letter; empty when the task succeeded.
        runtime_ms: How long its last run took; -1 when that is unknown.
        queue: Where its message came from; empty when that is unknown.
    """

    dead_letter_id: str = ""
    runtime_ms: int = -1
    queue: str = ""

    def encode(self) -> str:
        """Return it as text, without the dead letter, whose id is known only when it is written."""
        return f"{self.runtime_ms} {self.queue}"

    @classmethod
    def read(cls, mark: bytes) -> Ended:
        """Return what a done mark records: ``<dead letter or -> <runtime_ms> <queue>``."""
        try:
            dead_letter_id, runtime_ms, queue = mark.decode().split(" ", 2)
            return cls(dead_letter_id.removeprefix("-"), int(runtime_ms), queue)
        except ValueError:
            return cls()  # of another version


class LedgerEntry(NamedTuple):
    """What the ledger lists for a task: *in_flight* is an encoded :class:`InFlightTask`."""

    task_id: str
    in_flight: bytes
    delay_ms: int


class Delivery(NamedTuple):
    """What a task message says about itself.

    Arguments:
        retries: Number of the try that it is for, from 0.
        retry_of: Token of the run that has sent it as its retry; empty for any other message.
        sent_ms: When the first message of the task was sent, ms since the epoch, by the clock of the sender; 0 if that
            is unknown.
    """

    retries: int = 0
    retry_of: str = ""
    sent_ms: int = 0


class TaskStatus(NamedTuple):
    """What the ledger knows of a task: how it *ended*, whether it is *running*, and what was sent, until it ends."""

    ended: Ended | None
    running: bool
    in_flight: InFlightTask | None


@dataclass(frozen=True)
class Overdue:
    """A task that has not ended in time.

    Arguments:
        task_id, in_flight: The task.
        left_queue: Whether its message has left its queue: a task that was sent more than ``lease_s`` later through the
            same queue has started.
        lane_moves: Whether a task of the same queue has started within ``redispatch_after_s``.
        event_left_ms: How long its event exists, at least.
    """

    task_id: str
    in_flight: InFlightTask
    left_queue: bool
    lane_moves: bool
    event_left_ms: int


@dataclass(frozen=True)
class RunStart:
    """Result of :meth:`Ledger.start_run`.

    ``started``: run the task. ``ended``: it has had its effect. ``running``: another copy of its message runs, for at
    least *left_ms*. ``poisoned``: its worker died *deaths* times, more often than allowed. ``superseded``: the message
    is for an earlier try than the one that is due, which has another message. ``stale``: the message is so old that the
    done mark of its task may have expired, and the ledger does not know the task.
    """

    result: StartResult
    left_ms: int = 0
    deaths: int = 0

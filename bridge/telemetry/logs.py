"""What the log lines of the bridge carry besides their text: an action, which never changes its name, and fields.

Texts are for people and may change. Who filters, counts or alerts goes by the action::

    log.warning("dead letter (%s)", reason, extra=about("dead_letter", reason=reason, event_id=event.id))

Lines are written when something changes, not for every event; what would say the same again and again asks
:class:`Pace`. Fields hold names and numbers only, never a payload or a secret.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Annotated, Any, Literal, TypedDict, Unpack

Action = Literal[
    "check_failed",
    "consumer_removed",
    "dead_letter",
    "dead_letter_lost",
    "dispatch_waits",
    "end_not_noted",
    "ended_task_failed",
    "entries_overtaken",
    "event_lost",
    "flower_unchanged",
    "group_created",
    "journal_lost",
    "journal_trimmed",
    "keys_left_alone",
    "lease_lost",
    "leases_not_renewed",
    "left_silently",
    "local_handler_failed",
    "monitors_not_told",
    "no_handler",
    "outage",
    "outage_over",
    "publication_conflict",
    "replay_asked",
    "retry_waits",
    "source_limited",
    "stop_late",
    "subscribed_again",
    "subscriber_started",
    "subscriber_stopping",
    "subscription_late",
    "task_elsewhere",
    "task_waits_for_bus",
    "tasks_sent_again",
    "thread_failed",
    "undeliverable_task",
]

#: What each action means, in one line: for the documents.
ACTIONS: dict[Action, str] = {
    "check_failed": "A setting with which events are lost was found at the start.",
    "consumer_removed": "A consumer that is gone and held nothing was removed from the group.",
    "dead_letter": "An event, or a message that is none, could not be processed and was kept as a dead letter. Of what "
    "is refused as it comes, once a minute for each reason.",
    "dead_letter_lost": "What could not be processed could not be kept as a dead letter either: it is gone.",
    "dispatch_waits": "A queue has max_queue_length messages; events stay in the journal meanwhile.",
    "end_not_noted": "A task has ended, but Redis could not note it yet; this is tried again in the background.",
    "ended_task_failed": "A task had ended well and then failed, as when its result could not be stored.",
    "entries_overtaken": "Another subscriber took entries over that this one had read; it reads again.",
    "event_lost": "Events left the journal before they were dispatched, or a group outlived their retention.",
    "flower_unchanged": "Flower is not as expected: it starts without the Events pages, or without their tab.",
    "group_created": "A consumer group was created: a new application, or an old one after its journal was deleted.",
    "journal_lost": "The journal or the group was deleted; both are made anew and filled from the event keys.",
    "journal_trimmed": "The journal was trimmed while it was replayed; events may be missing from the replay.",
    "keys_left_alone": "Catch-up left event keys alone that are older than event_ttl_s.",
    "lease_lost": "A running task lost its lease, as after a long freeze; another copy of it may run.",
    "leases_not_renewed": "Redis took no renewal of leases; running tasks may be begun again elsewhere.",
    "left_silently": "A subscriber stopped and could not leave its group; the others take over in time.",
    "local_handler_failed": "A handler of EventBus.subscribe() raised an error; the others were called.",
    "monitors_not_told": "Flower and other monitors missed the outcome of a task.",
    "no_handler": "A task cannot be sent again because this subscriber does not know its handler.",
    "outage": "Redis or the broker failed, or a thread of the subscriber; it is tried until it works.",
    "outage_over": "What failed works again.",
    "publication_conflict": "An event was not published: another one has its id.",
    "replay_asked": "Somebody asked for a retry or a replay on the Events pages of Flower.",
    "retry_waits": "A task is retried, but its lease could not be given back; the retry waits until it is over.",
    "source_limited": "A source sends more events than max_events_per_s_per_source; the rest become dead letters. "
    "Once a minute.",
    "stop_late": "Threads did not stop in time; they were left behind.",
    "subscribed_again": "The subscription to the event channels was lost and is back; what was missed is looked for.",
    "subscriber_started": "A subscriber has started.",
    "subscriber_stopping": "A subscriber was told to stop.",
    "subscription_late": "EventBus.subscribe() has no subscription yet and goes on trying.",
    "task_elsewhere": "A copy of a task's message came while the task runs elsewhere; it looks again later.",
    "task_waits_for_bus": "A task that acknowledges early cannot begin while the bus is away; it comes again.",
    "tasks_sent_again": "Overdue tasks that neither ran nor waited in their queue were sent again.",
    "thread_failed": "A thread of the subscriber failed of something unforeseen, and starts again: report it as a bug.",
    "undeliverable_task": "A task failed that somebody sent by hand without an event, so there is no dead letter.",
}


class Fields(TypedDict, total=False):
    """What a line may be about, each with its meaning as data. None of the names is one of LogRecord."""

    event_id: Annotated[str | None, "Id of the event."]
    event_type: Annotated[str | None, "Type of the event."]
    task_id: Annotated[str | None, "Id of the Celery task."]
    handler: Annotated[str | None, "Name of the handler's task; of a local handler, of its function."]
    group: Annotated[str | None, "Consumer group, which is the name of the application."]
    consumer: Annotated[str | None, "Name of the subscriber within its group."]
    reason: Annotated[str | None, "Reason of a dead letter, or class of an error: a stable short name."]
    origin: Annotated[str | None, "Where a message came from: a channel, a key, `journal` or `ledger`."]
    queue: Annotated[str | None, "Name of a queue of the broker."]
    entry_id: Annotated[str | None, "Id of an entry of the journal."]
    setting: Annotated[str | None, "Name of a setting, and whose it is."]
    where: Annotated[str | None, "Which thread or which part it is."]
    count: Annotated[int | None, "How many it concerns."]


def log_fields(action: Action, **fields: Unpack[Fields]) -> dict[str, Any]:
    """Return ``extra`` of a log call: the action, and the fields that are known; None and "" are left out."""
    return {"action": action, **{name: value for name, value in fields.items() if value not in (None, "")}}


#: Things of which one Pace remembers when they were said.
_REMEMBERED = 1000


class LogThrottle:
    """Tells whether a line is due that would otherwise come again and again. Safe for several threads.

    Arguments:
        every_s: Pause between two lines about the same thing, in seconds.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._said_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, what: str = "") -> bool:
        """Whether *what* has not been said for a while; then it counts as said."""
        now = time.monotonic()
        with self._lock:
            if now - self._said_at.get(what, -self._every_s) < self._every_s:
                return False
            self._said_at[what] = now
            self._said_at.move_to_end(what)
            if len(self._said_at) > _REMEMBERED:
                self._said_at.popitem(last=False)
            return True

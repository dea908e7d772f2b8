"""What the log lines of the bridge carry besides their text: an action, which never changes its name, and fields.

Texts are for people and may change. Who filters, counts or alerts goes by the action::

    log.warning("dead letter (%s)", reason, extra=log_fields(Action.DEAD_LETTER, reason=reason, event_id=event.id))

Lines are written when something changes, not for every event; what would say the same again and again asks
:class:`Pace`. Fields hold names and numbers only, never a payload or a secret.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from enum import StrEnum
from typing import Annotated, Any, Self, TypedDict, Unpack


class Action(StrEnum):
    """The action of a log line: a name that never changes, and what it means in one line, for the documents."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Make the member *value*; *meaning* is its text for the documents."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    CONSUMER_REMOVED = "consumer_removed", "A consumer that is gone and held nothing was removed from the group."
    DEAD_LETTER = (
        "dead_letter",
        "An event, or a message that is none, could not be processed and was kept as a dead letter. Of what "
        "is refused as it comes, once a minute for each reason.",
    )
    DEAD_LETTER_LOST = (
        "dead_letter_lost",
        "What could not be processed could not be kept as a dead letter either: it is gone.",
    )
    DISPATCH_BACKPRESSURE = (
        "dispatch_backpressure",
        "A queue has max_queue_length messages; events stay in the journal meanwhile.",
    )
    ENTRIES_OWNERSHIP_LOST = (
        "entries_ownership_lost",
        "Another subscriber took entries over that this one had read; it reads again.",
    )
    EVENT_ID_CONFLICT = "event_id_conflict", "An event was not published: another one has its id."
    EVENT_LOST = (
        "event_lost",
        "Events left the journal before they were dispatched, or a group outlived their retention.",
    )
    FLOWER_PAGES_UNAVAILABLE = (
        "flower_pages_unavailable",
        "Flower is not as expected: it starts without the Events pages, or without their tab.",
    )
    GROUP_CREATED = (
        "group_created",
        "A consumer group was created: a new application, or an old one after its journal was deleted.",
    )
    JOURNAL_LOST = (
        "journal_lost",
        "The journal or the group was deleted; both are made anew and filled from the event keys.",
    )
    LEASE_LOST = "lease_lost", "A running task lost its lease, as after a long freeze; another copy of it may run."
    LEASE_RENEWAL_FAILED = (
        "lease_renewal_failed",
        "Redis took no renewal of leases; running tasks may be begun again elsewhere.",
    )
    LEAVE_FAILED = "leave_failed", "A subscriber stopped and could not leave its group; the others take over in time."
    LOCAL_HANDLER_FAILED = (
        "local_handler_failed",
        "A handler of EventBus.subscribe() raised an error; the others were called.",
    )
    OUTAGE = "outage", "Redis or the broker failed, or a thread of the subscriber; it is tried until it works."
    OUTAGE_OVER = "outage_over", "What failed works again."
    REPLAY_REQUESTED = "replay_requested", "Somebody asked for a retry or a replay on the Events pages of Flower."
    REPLAY_SOURCE_TRIMMED = (
        "replay_source_trimmed",
        "The journal was trimmed while it was replayed; events may be missing from the replay.",
    )
    RESUBSCRIBED = (
        "resubscribed",
        "The subscription to the event channels was lost and is back; what was missed is looked for.",
    )
    RETRY_DELAYED = (
        "retry_delayed",
        "A task is retried, but its lease could not be given back; the retry waits until it is over.",
    )
    SOURCE_RATE_LIMITED = (
        "source_rate_limited",
        "A source sends more events than max_events_per_s_per_source; the rest become dead letters. Once a minute.",
    )
    STALE_KEYS_SKIPPED = "stale_keys_skipped", "Catch-up left event keys alone that are older than event_ttl_s."
    STARTUP_CHECK_FAILED = "startup_check_failed", "A setting with which events are lost was found at the start."
    STOP_TIMED_OUT = "stop_timed_out", "Threads did not stop in time; they were left behind."
    SUBSCRIBER_STARTED = "subscriber_started", "A subscriber has started."
    SUBSCRIBER_STOPPING = "subscriber_stopping", "A subscriber was told to stop."
    SUBSCRIPTION_DELAYED = "subscription_delayed", "EventBus.subscribe() has no subscription yet and goes on trying."
    TASK_ALREADY_RUNNING = (
        "task_already_running",
        "A copy of a task's message came while the task runs elsewhere; it looks again later.",
    )
    TASK_END_NOT_RECORDED = (
        "task_end_not_recorded",
        "A task has ended, but Redis could not note it yet; this is tried again in the background.",
    )
    TASK_FAILED_AFTER_SUCCESS = (
        "task_failed_after_success",
        "A task had ended well and then failed, as when its result could not be stored.",
    )
    TASK_START_DELAYED = (
        "task_start_delayed",
        "A task that acknowledges early cannot begin while the bus is away; it comes again.",
    )
    TASK_WITHOUT_EVENT_FAILED = (
        "task_without_event_failed",
        "A task failed that somebody sent by hand without an event, so there is no dead letter.",
    )
    TASKS_REDISPATCHED = (
        "tasks_redispatched",
        "Overdue tasks that neither ran nor waited in their queue were sent again.",
    )
    THREAD_FAILED = (
        "thread_failed",
        "A thread of the subscriber failed of something unforeseen, and starts again: report it as a bug.",
    )
    UNKNOWN_HANDLER = (
        "unknown_handler",
        "A task cannot be sent again because this subscriber does not know its handler.",
    )
    WORKER_EVENT_FAILED = "worker_event_failed", "Flower and other monitors missed the outcome of a task."


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
    component: Annotated[str | None, "Name of the thread or part of the subscriber."]
    count: Annotated[int | None, "How many it concerns."]


def log_fields(action: Action, **fields: Unpack[Fields]) -> dict[str, Any]:
    """Return ``extra`` of a log call: the action, and the fields that are known; None and "" are left out."""
    return {"action": action.value, **{name: value for name, value in fields.items() if value not in (None, "")}}


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

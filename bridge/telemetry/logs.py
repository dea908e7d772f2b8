"""Structured log lines: each has an action, which is a stable name, and fields, in addition to its text.

Texts are for people and may change. Filters, counts and alerts use the action::

    extra = log_fields(Action.DEAD_LETTER, reason=reason, event_id=event.id)
    log.warning("Event %s became a dead letter (%s)", event.id, reason, extra=extra)

A line is written when something changes, not for every event. Lines that would repeat are limited by
:class:`LogThrottle`. Fields hold names and numbers only, never a payload or a secret.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from enum import StrEnum
from typing import Annotated, Any, Self, TypedDict, Unpack


class Action(StrEnum):
    """The action of a log line: a stable name and its meaning in one line, which the documentation shows."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Create the member *value* with its *meaning*, the text for the documentation."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    CONSUMER_REMOVED = "consumer_removed", "A dead consumer without pending entries was removed from the group."
    DEAD_LETTER = (
        "dead_letter",
        "An event or an invalid message could not be processed and was kept as a dead letter. For what intake rejects, "
        "one line a minute for each reason.",
    )
    DEAD_LETTER_DELAYED = (
        "dead_letter_delayed",
        "Redis refuses a dead letter. Its event, task or message is kept, and writing it is retried.",
    )
    DEAD_LETTER_LOST = (
        "dead_letter_lost",
        "The dead letter of a rejected message was discarded: Redis refused it until too many were kept, or until the "
        "subscriber stopped.",
    )
    DISPATCH_BACKPRESSURE = (
        "dispatch_backpressure",
        "Dispatch paused: a queue holds max_queue_length messages. Events stay in the journal.",
    )
    ENTRIES_OWNERSHIP_LOST = (
        "entries_ownership_lost",
        "Another subscriber claimed entries that this one had read, or joined or left with other handlers. The pending "
        "entries are read again.",
    )
    EVENT_ID_CONFLICT = "event_id_conflict", "An event was not published: its id is taken by another event."
    EVENT_LOST = (
        "event_lost",
        "Events were removed from the journal, or became older than event_ttl_s, before they were dispatched.",
    )
    FLOWER_PAGES_UNAVAILABLE = (
        "flower_pages_unavailable",
        "This Flower is not supported: it starts without the Events pages, or without their tab.",
    )
    GROUP_CREATED = (
        "group_created",
        "A consumer group was created: for a new application, or again after its journal was deleted.",
    )
    HANDLERS_DIFFER = (
        "handlers_differ",
        "Subscribers of one group have different handlers, as while a new version is deployed. If it stays, two "
        "applications share the group.",
    )
    JOURNAL_AHEAD = (
        "journal_ahead",
        "The ids of the journal were ahead of the clock of Redis. Its entries are moved to a new journal. One line a "
        "minute.",
    )
    JOURNAL_CUT = (
        "journal_cut",
        "Another program removed entries from the journal. Those that were not dispatched are filled in from the event "
        "keys.",
    )
    JOURNAL_LOST = (
        "journal_lost",
        "The journal or the consumer group was deleted. Both are recreated and filled from the event keys.",
    )
    JOURNAL_REPAIRED = "journal_repaired", "Entries were moved to a new journal, because of journal_ahead."
    LEASE_LOST = (
        "lease_lost",
        "A running task lost its lease, as after a long freeze of its process. Another copy of it may run.",
    )
    LEASE_RENEWAL_FAILED = (
        "lease_renewal_failed",
        "Leases could not be renewed. Running tasks may be started again elsewhere.",
    )
    LEAVE_FAILED = (
        "leave_failed",
        "A subscriber stopped but could not leave its group. Another one claims its entries after claim_idle_s.",
    )
    LOCAL_HANDLER_FAILED = (
        "local_handler_failed",
        "A handler of EventBus.subscribe() raised an error. The other handlers were called.",
    )
    NO_HANDLERS = "no_handlers", "A subscriber has no handlers, so it leaves the events in the journal."
    OUTAGE = "outage", "Redis, the broker or a thread of the subscriber failed. It is retried until it works."
    OUTAGE_OVER = "outage_over", "The outage is over."
    PUBLISHING_IS_WRAPPED = (
        "publishing_is_wrapped",
        "Another tool has wrapped Celery's apply_async() or send_task(), or receives the publish signals: dispatch is "
        "slower, and at least once. One line in each process.",
    )
    PUBLISHING_TASK_UNKNOWN = (
        "publishing_task_unknown",
        "A thread that belongs to no known task has published an event, which has no cause. One line in each process.",
    )
    QUEUE_MOVES_AGAIN = (
        "queue_moves_again",
        "The problem of queue_without_consumer or queue_stalled is over: messages leave the queue, or it is empty.",
    )
    QUEUE_NOT_TAKEN = (
        "queue_not_taken",
        "At the start of a worker: handlers are sent to a queue that no worker is known to take tasks from.",
    )
    QUEUE_STALLED = (
        "queue_stalled",
        "Messages have waited in a queue for five minutes and none has left it, though workers take tasks from it.",
    )
    QUEUE_WITHOUT_CONSUMER = (
        "queue_without_consumer",
        "Messages have waited in a queue for a minute, and no worker takes tasks from it.",
    )
    REPLAY_REQUESTED = "replay_requested", "A user requested a retry or a replay on the Events pages of Flower."
    REPLAY_SOURCE_TRIMMED = (
        "replay_source_trimmed",
        "The journal was trimmed during a replay. Events may be missing from the replay.",
    )
    RESUBSCRIBED = (
        "resubscribed",
        "The subscription to the event channels was lost and is back. A scan of the event keys finds missed events.",
    )
    RETRY_DELAYED = (
        "retry_delayed",
        "A task runs again, but its lease could not be released in Redis. This is retried in the background.",
    )
    REVOCATION_NOT_STORED = (
        "revocation_not_stored",
        "A task was revoked or has expired, but the result backend could not store that.",
    )
    SOURCE_RATE_LIMITED = (
        "source_rate_limited",
        "A source exceeds max_events_per_s_per_source. Further events become dead letters. One line a minute.",
    )
    STALE_KEYS_SKIPPED = "stale_keys_skipped", "Catch-up skipped event keys whose events are old or of unknown age."
    STARTUP_CHECK_FAILED = "startup_check_failed", "A start-up check found a setting that can lose events."
    STOP_TIMED_OUT = "stop_timed_out", "Threads of the subscriber did not stop in time and were left running."
    SUBSCRIBER_STARTED = "subscriber_started", "A subscriber has started."
    SUBSCRIBER_STOPPING = "subscriber_stopping", "A subscriber received a signal to stop."
    SUBSCRIPTION_DELAYED = "subscription_delayed", "EventBus.subscribe() is not subscribed yet and keeps retrying."
    TASK_ALREADY_RUNNING = (
        "task_already_running",
        "A duplicate of a task message was received while the task runs elsewhere. It is retried later.",
    )
    TASK_DISCARDED = (
        "task_discarded",
        "A worker took a task whose handler it does not have, so Celery discarded its message: two applications share "
        "a queue, or the worker runs an older version. The task is sent again after `redispatch_after_s`.",
    )
    TASK_END_NOT_RECORDED = (
        "task_end_not_recorded",
        "A task ended, but its end cannot be recorded in Redis yet. Its message is acknowledged when it is.",
    )
    TASK_FAILED_AFTER_SUCCESS = (
        "task_failed_after_success",
        "A task succeeded and then failed in a later step, such as storing its result.",
    )
    TASK_START_DELAYED = (
        "task_start_delayed",
        "A task cannot start because the bus is unavailable. Its message is delivered again.",
    )
    TASK_WITHOUT_EVENT_FAILED = (
        "task_without_event_failed",
        "A task that was sent manually, without an event, failed. There is no dead letter.",
    )
    TASKS_REDISPATCHED = (
        "tasks_redispatched",
        "Overdue tasks that neither ran nor seemed to wait were sent again.",
    )
    THREAD_FAILED = (
        "thread_failed",
        "A thread of the subscriber failed with an unexpected error and restarts. Report it as a bug.",
    )
    TRACING_FAILED = (
        "tracing_failed",
        "OpenTelemetry raised an error, so spans or trace contexts may be missing. One line in each process for each "
        "class of error.",
    )
    UNKNOWN_HANDLER = (
        "unknown_handler",
        "A task cannot be sent again because its handler is not registered in this process.",
    )
    WORKER_EVENT_FAILED = "worker_event_failed", "The outcome of a task could not be sent to Flower and other monitors."


class Fields(TypedDict, total=False):
    """Fields of a log line, each with its meaning as data. No name is an attribute of LogRecord."""

    event_id: Annotated[str | None, "Id of the event."]
    event_type: Annotated[str | None, "Type of the event."]
    task_id: Annotated[str | None, "Id of the Celery task."]
    handler: Annotated[str | None, "Name of the handler's task, or of the function of a local handler."]
    group: Annotated[str | None, "Consumer group: the name of the application."]
    consumer: Annotated[str | None, "Name of the subscriber within its group."]
    reason: Annotated[str | None, "Reason of a dead letter, or class of an error."]
    origin: Annotated[str | None, "Origin of a message: a channel, a key, `journal` or `ledger`."]
    queue: Annotated[str | None, "Queue of the broker."]
    entry_id: Annotated[str | None, "Id of a journal entry."]
    setting: Annotated[str | None, "Name of a setting, and the server or program that it belongs to."]
    component: Annotated[str | None, "Name of the thread or part of the subscriber."]
    count: Annotated[int | None, "Number of events, tasks or keys."]


def log_fields(action: Action, **fields: Unpack[Fields]) -> dict[str, Any]:
    """Return ``extra`` for a log call: the action, and the fields except empty ones."""
    return {"action": action.value, **{name: value for name, value in fields.items() if value not in (None, "")}}


#: Subjects that one LogThrottle remembers.
_REMEMBERED = 1000


class LogThrottle:
    """Limits how often a repeated line is logged. Safe for several threads.

    Arguments:
        every_s: Interval between two lines about the same subject, in seconds.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._logged_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, subject: str = "") -> bool:
        """Return whether a line about *subject* is due; if so, the interval starts again."""
        now = time.monotonic()
        with self._lock:
            if now - self._logged_at.get(subject, -self._every_s) < self._every_s:
                return False
            self._logged_at[subject] = now
            self._logged_at.move_to_end(subject)
            if len(self._logged_at) > _REMEMBERED:
                self._logged_at.popitem(last=False)
            return True

"""What becomes known of a queue from one measurement to the next: whether it moves, and who takes from it.

A queue that is not empty is normal. It has a problem if its messages wait and none of them leaves: because no worker
takes from it, or because those that do are busy with long tasks, or hang. A message whose ``eta`` is in the future does
not wait yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge.broker import QueueLoad
from bridge.storage import QueueHistory, QueueProblem, QueueRecord, QueueStatus, QueueTasks

#: How long a worker may still start tasks after it was last known to take from the queue.
_GRACE_MS = 10_000
#: How much clocks of hosts may differ.
_CLOCK_SKEW_MS = 10_000
#: How long a queue is measured after its last use, if it is empty, and if messages wait in it.
_KEEP_EMPTY_MS, _KEEP_FILLED_MS = 60_000, 600_000


@dataclass(frozen=True)
class Limits:
    """When a queue has a problem.

    Arguments:
        alone_s: How long messages wait without a consumer.
        still_s: How long messages wait while none leaves the queue.
        quiet_s: The same problem of the same queue is logged again after this time at the earliest.
    """

    alone_s: float = 60.0
    still_s: float = 300.0
    quiet_s: float = 600.0


@dataclass(frozen=True)
class Measurement:
    """What was found out about one queue.

    Arguments:
        name: The queue.
        load: As the broker shows it; None if it cannot be measured.
        tasks: As the ledger shows it.
        takers: How many workers report that they take from it.
        unreported: Whether there are workers that do not report their queues.
        needed: Whether handlers are sent to it, or tasks that are in flight were.
        full: Whether it has ``max_queue_length`` messages.
    """

    name: str
    load: QueueLoad | None
    tasks: QueueTasks
    takers: int
    unreported: bool = False
    needed: bool = True
    full: bool = False


def next_record(last: QueueRecord | None, found: Measurement, now_ms: int, limits: Limits) -> QueueRecord:
    """Return what is known of a queue after a measurement.

    Arguments:
        last: What was known before; None if the queue was not measured before.
        now_ms: By the clock of the server.
    """
    before = QueueHistory() if last is None else last.history
    load = found.load
    moved_ms = max(before.moved_ms, found.tasks.started_ms)
    if last is not None and load is not None and _has_moved(last, load):
        moved_ms = now_ms
    oldest_ms = _oldest_ms(before, found, moved_ms, now_ms)
    waits = load is not None and load.messages > 0 and (oldest_ms is None or oldest_ms <= now_ms)
    still_ms = max(before.still_ms or now_ms, moved_ms) if waits else 0
    consumers = _consumers(before, found, moved_ms, now_ms, limits)
    alone_ms = (before.alone_ms or now_ms) if waits and consumers == 0 else 0
    problem: QueueProblem = ""
    if alone_ms and now_ms - alone_ms >= limits.alone_s * 1000:
        problem = "no_consumer"
    elif still_ms and now_ms - still_ms >= limits.still_s * 1000:
        problem = "stalled"
    status = QueueStatus(found.name, consumers=consumers, full=found.full, problem=problem)
    if load is not None:
        oldest_s = None if waits and oldest_ms is None else _seconds(now_ms, oldest_ms if waits else None)
        stalled_s = _seconds(now_ms, still_ms or None)
        status = replace(status, messages=load.messages, oldest_s=oldest_s, stalled_s=stalled_s)
    history = QueueHistory(
        heads=() if load is None else load.heads,
        oldest_ms=oldest_ms,
        needed_ms=now_ms if found.needed else before.needed_ms,
        taken_ms=now_ms if consumers else before.taken_ms,
        moved_ms=moved_ms,
        still_ms=still_ms,
        alone_ms=alone_ms,
        warned=before.warned,
        warned_at_ms=before.warned_at_ms,
    )
    return QueueRecord(status, _with_warning(history, problem, now_ms, limits))


def is_kept(record: QueueRecord, now_ms: int) -> bool:
    """Whether a queue is still measured, though it may not be used any more."""
    keep_ms = _KEEP_FILLED_MS if record.status.messages else _KEEP_EMPTY_MS
    return now_ms - record.history.needed_ms <= keep_ms


def _has_moved(last: QueueRecord, load: QueueLoad) -> bool:
    """Whether a message has left the queue since the last measurement."""
    fewer = last.status.messages is not None and load.messages < last.status.messages
    return fewer or (bool(load.heads) and not set(load.heads).issuperset(last.history.heads))


def _oldest_ms(before: QueueHistory, found: Measurement, moved_ms: int, now_ms: int) -> int | None:
    """Return since when the next message has waited, or will from its ``eta`` on; None if that is not known.

    If the broker does not show it, the ledger does, which shows some tasks only. So the oldest one that was found
    counts until a message leaves the queue.
    """
    load, listed_ms = found.load, found.tasks.oldest_ms
    if load is None or not load.messages:
        return None
    if load.heads:
        since_ms = load.since_ms
        if since_ms is None or since_ms <= now_ms:
            return since_ms
        if not load.delayed:  # sent since the server's clock was read, or by a clock that is ahead
            return now_ms if since_ms - now_ms < _CLOCK_SKEW_MS else None
        return since_ms if listed_ms is None else listed_ms  # tasks behind it may be due
    remembered = before.oldest_ms if before.moved_ms == moved_ms else None
    return min((known for known in (remembered, listed_ms) if known is not None), default=None)


def _consumers(before: QueueHistory, found: Measurement, moved_ms: int, now_ms: int, limits: Limits) -> int | None:
    """Return how many workers take from the queue.

    Workers of earlier versions, and workers without the bridge, do not report what they take. They show by a queue that
    moves though nobody is known to take from it.
    """
    if found.load is not None and found.load.consumers is not None:
        return found.load.consumers
    if found.takers:
        return found.takers
    moves = now_ms - moved_ms < limits.still_s * 1000 and moved_ms > before.taken_ms + _GRACE_MS
    return None if found.unreported or moves else 0


def _with_warning(history: QueueHistory, problem: QueueProblem, now_ms: int, limits: Limits) -> QueueHistory:
    """Return the history with the problem that is logged now; it is logged once, and again when it was over."""
    at_ms = history.warned_at_ms or {}
    if problem == history.warned:
        return history
    if problem and now_ms - at_ms.get(problem, 0) < limits.quiet_s * 1000:
        return history
    return replace(history, warned=problem, warned_at_ms=at_ms | ({problem: now_ms} if problem else {}))


def _seconds(now_ms: int, since_ms: int | None) -> float:
    return 0.0 if since_ms is None else round(max(0, now_ms - since_ms) / 1000, 1)

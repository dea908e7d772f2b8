"""The queues of the tasks that were sent and have not started, as far as a few look-ups in the ledger show.

Tasks that have not started for the longest time come first in the ledger, because a start postpones the time at which a
task is overdue. So some of the first ones, and some at random, show the queues in which tasks wait, however many there
are.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from bridge.storage.in_flight import InFlightTask
from bridge.storage.storage import Storage

#: Tasks that are looked up: the first ones of the ledger, and others at random.
_FIRST, _RANDOM = 50, 50


@dataclass(frozen=True)
class QueueTasks:
    """What the ledger shows of one queue; times in ms since the epoch.

    Arguments:
        oldest_ms: When the oldest task that was found, and has not started, was sent or was due; None: none was found.
        started_ms: When a task of the queue last started; 0 if that is not known.
        in_flight: Whether tasks in flight were found that were sent to it.
    """

    oldest_ms: int | None = None
    started_ms: int = 0
    in_flight: bool = False


def find_waiting_tasks(storage: Storage, queues: Iterable[str], now_ms: int) -> dict[str, QueueTasks]:
    """Return what the ledger shows of *queues*, and of the queues of some tasks in flight; three round trips.

    Raises:
        RedisError: Redis does not answer.
    """
    group = storage.settings.group
    inflight, tasks = storage.keys.inflight(group), storage.keys.inflight_tasks(group)
    with storage.client.pipeline(transaction=False) as pipe:
        pipe.zrange(inflight, 0, _FIRST - 1)
        pipe.hrandfield(tasks, _RANDOM, withvalues=True)
        first, chosen = pipe.execute()
    records: list[Any] = chosen[1::2]
    if first:
        records += storage.client.hmget(tasks, first)
    found: list[tuple[str, int, InFlightTask]] = []
    for record in filter(None, records):
        with suppress(ValueError, TypeError, KeyError):  # another program may have written it
            sent_ms, _, text = record.partition(b" ")
            task = InFlightTask.decode(text)
            if task.queue:
                found.append((f"{task.queue} {task.priority}", int(sent_ms), task))
    lanes = sorted({lane for lane, _, _ in found} | {f"{queue} 0" for queue in queues})
    return _by_queue(found, _watermarks(storage, lanes), now_ms)


def _watermarks(storage: Storage, lanes: list[str]) -> dict[str, tuple[int, int]]:
    """Return for each lane when its newest task that has started was sent, and when the last one started."""
    if not lanes:
        return {}
    names = [name for lane in lanes for name in (lane, f"{lane} started")]
    values: Any = storage.client.hmget(storage.keys.queue_watermarks(storage.settings.group), names)
    numbers = [int(value or 0) for value in values]
    return dict(zip(lanes, zip(numbers[::2], numbers[1::2], strict=True), strict=True))


def _by_queue(
    found: Iterable[tuple[str, int, InFlightTask]], watermarks: dict[str, tuple[int, int]], now_ms: int
) -> dict[str, QueueTasks]:
    queues: dict[str, QueueTasks] = {}
    for lane, (_, started_ms) in watermarks.items():
        queue = lane.rpartition(" ")[0]
        known = queues.get(queue, QueueTasks())
        queues[queue] = replace(known, started_ms=max(known.started_ms, started_ms))
    for lane, sent_ms, task in found:
        due_ms, known = sent_ms + task.delay_ms, replace(queues[task.queue], in_flight=True)
        waits = not task.given_up and not task.retried and watermarks[lane][0] < sent_ms and due_ms <= now_ms
        if waits and (known.oldest_ms is None or due_ms < known.oldest_ms):
            known = replace(known, oldest_ms=due_ms)
        queues[task.queue] = known
    return queues

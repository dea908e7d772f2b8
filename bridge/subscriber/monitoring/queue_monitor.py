"""Measures the queues of a group, for all of its subscribers, and logs a warning if a queue does not move."""

from __future__ import annotations

import logging
import shlex
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from celery import Celery
from redis.exceptions import RedisError

from bridge.broker import Outbox, QueueLoad, QueueProbe, broker_id
from bridge.handlers import Registry
from bridge.storage import QueueRecord, QueueSample, QueueTasks, Storage, find_waiting_tasks
from bridge.subscriber.maintenance.leader import Leader
from bridge.subscriber.members import Members
from bridge.subscriber.monitoring.queue_states import Limits, Measurement, is_kept, next_record
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)

_LIMITS = Limits()
#: How often the queues are measured, in seconds.
_INTERVAL_S = 5.0
#: Most queues in a sample. A metrics system keeps each of their names, and a router may invent any number.
_MAX_QUEUES = 100
#: A longer name of a queue is left out.
_MAX_NAME_CHARS = 200


class QueueMonitor:
    """Measures the queues that tasks of a group are sent to, while this subscriber is elected. Used by one thread.

    These are the queues of its handlers, and those of some tasks in flight. If the subscribers have different handlers,
    they are elected in turn. The sample is stored in Redis, where all subscribers and ``bus status`` read it.

    Arguments:
        app: The Celery application.
        storage: The ledger, the workers and the sample of the group.
        registry: The handlers of this subscriber.
        members: The name of this subscriber, and whether the others have other handlers.
        limits: When a queue has a problem.
        interval_s: How often the queues are measured.
    """

    def __init__(
        self,
        app: Celery,
        storage: Storage,
        registry: Registry,
        members: Members,
        limits: Limits = _LIMITS,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        settings = storage.settings
        self._app = app
        self._storage = storage
        self._registry = registry
        self._members = members
        self._limits = limits
        self._interval_s = interval_s
        self._group = settings.group
        self._max_length = settings.max_queue_length
        self._probe = QueueProbe(app)
        self._outbox = Outbox(app, settings)
        #: The handlers whose queues are known, and these queues.
        self._routed: tuple[frozenset[str], set[str]] = (frozenset(), set())
        key = storage.keys.queue_leader(self._group)
        self._leader = Leader(storage.client, key, members.name, interval_s)

    def run(self, stop: threading.Event) -> None:
        """Measure at intervals until *stop* is set. While Redis or the broker fails, there is no new sample."""
        while not stop.is_set():
            with suppress(RedisError, OSError):  # the other threads log it
                self.step()
            stop.wait(self._interval_s)
        with suppress(RedisError, OSError):
            self.close()

    def step(self) -> None:
        """Measure once if this subscriber is elected.

        Raises:
            RedisError: Redis does not answer.
        """
        if self._leader.elected():
            self._measure()
            if self._members.differ:
                self._leader.resign()

    def close(self) -> None:
        """Let another subscriber be elected at once, and close the connection to the broker."""
        self._probe.close()
        self._leader.resign()

    def _measure(self) -> None:
        now_ms, last = self._storage.queue_samples.read()
        known = {} if last is None else {record.status.name: record for record in last.queues}
        routed = self._routed_queues()
        tasks = find_waiting_tasks(self._storage, {*routed, *known}, now_ms)
        names = {name for name in {*routed, *known, *tasks} if len(name) <= _MAX_NAME_CHARS}
        try:
            loads = self._probe.measure(names)
        except Exception:  # noqa: BLE001  # the broker's client may raise anything, and the other threads log it
            return
        measurements = self._measurements(names, routed, tasks, loads)
        records = [next_record(known.get(one.name), one, now_ms, self._limits) for one in measurements]
        records = _most_important([record for record in records if is_kept(record, now_ms)])
        self._storage.queue_samples.write(QueueSample(now_ms, tuple(records)))
        for record in records:
            self._log(known.get(record.status.name), record)

    def _measurements(
        self, names: Iterable[str], routed: set[str], tasks: dict[str, QueueTasks], loads: dict[str, QueueLoad]
    ) -> list[Measurement]:
        takers = self._takers()
        old = any(one.alive and not one.reports_queues for one in self._storage.presence.all())
        found = []
        for name in names:
            load, listed = loads.get(name), tasks.get(name, QueueTasks())
            full = load is not None and self._max_length is not None and load.messages >= self._max_length
            needed = name in routed or listed.in_flight
            found.append(Measurement(name, load, listed, takers[name], old, needed, full))
        return found

    def _takers(self) -> Counter[str]:
        """Return how many workers take from each queue.

        Workers of other groups count if their broker has the same address. Their messages may be in the same queue.
        """
        groups = sorted({self._group, *self._storage.group_settings.all()})
        here = broker_id(self._app)
        workers = self._storage.workers.alive(groups)
        near = [one for one in workers if self._group == one.group or here == one.broker]
        return Counter(queue for one in near for queue in one.queues)

    def _routed_queues(self) -> set[str]:
        handlers = frozenset(self._registry.names)
        if handlers != self._routed[0]:
            self._routed = handlers, self._outbox.queues(self._registry)
        return self._routed[1]

    def _log(self, last: QueueRecord | None, record: QueueRecord) -> None:
        """Log a problem that has begun, or that is over."""
        before, now = "" if last is None else last.history.warned, record.history.warned
        if before == now:
            return
        queue, count = record.status.name, record.status.messages
        start = f"celery -A APP worker -Q {shlex.quote(queue)}"
        if record.status.full:
            start += ". Dispatch waits for room in the queue (bridge_max_queue_length)"
        if now == "no_consumer":
            extra = log_fields(Action.QUEUE_WITHOUT_CONSUMER, group=self._group, queue=queue, count=count)
            text = "%s, and no worker takes tasks from it. Nothing is lost: they run when one does. Start one: %s"
            log.warning(text, _waiting(record), start, extra=extra)
        elif now == "stalled":
            extra = log_fields(Action.QUEUE_STALLED, group=self._group, queue=queue, count=count)
            text = (
                "%s, and none has left it for %.0f s, though %s from it. Nothing is lost. The workers are busy with "
                "long tasks, or hang: see celery -A APP inspect active. Start another one: %s"
            )
            log.warning(text, _waiting(record), record.status.stalled_s, _takers(record), start, extra=extra)
        else:
            extra = log_fields(Action.QUEUE_MOVES_AGAIN, group=self._group, queue=queue, count=count)
            log.info("Queue %s moves again; %s messages wait in it", queue, count, extra=extra)


def _waiting(record: QueueRecord) -> str:
    status = record.status
    text = f"{status.messages} message{' waits' if status.messages == 1 else 's wait'} in queue {status.name}"
    return text if status.oldest_s is None else f"{text}, the oldest for {status.oldest_s:.0f} s"


def _takers(record: QueueRecord) -> str:
    consumers = record.status.consumers
    if consumers is None:
        return "an unknown number of workers take"
    return "1 worker takes" if consumers == 1 else f"{consumers} workers take"


def _most_important(records: Iterable[QueueRecord]) -> list[QueueRecord]:
    """Return the records by the names of their queues; if there are too many, those with problems and messages."""

    def importance(record: QueueRecord) -> tuple[bool, int, str]:
        return not record.status.problem, -(record.status.messages or 0), record.status.name

    return sorted(sorted(records, key=importance)[:_MAX_QUEUES], key=lambda record: record.status.name)

"""Measuring the queues of workers in the process of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery import Celery

from bridge.handlers import Registry
from bridge.storage import QueueStatus, Storage, read_status
from bridge.subscriber.members import Members
from bridge.subscriber.monitoring.queue_monitor import QueueMonitor
from bridge.subscriber.monitoring.queue_states import Limits
from tests.handlers import HANDLERS


@contextmanager
def measure_queues(app: Celery, storage: Storage, limits: Limits) -> Iterator[Callable[[str], QueueStatus]]:
    """Yield a function that measures the queues of a group, and returns what all subscribers report of one of them."""
    app.finalize()
    registry = Registry()
    registry.add(HANDLERS["t.exact"])  # its tasks are sent to the queue celery
    monitor = QueueMonitor(app, storage, registry, Members(storage, registry, "test"), limits)

    def measured(name: str) -> QueueStatus:
        monitor.step()
        group = read_status(storage).group(storage.settings.group)
        queues = {} if group is None else {one.name: one for one in group.queues or ()}
        return queues.get(name, QueueStatus(name))

    yield measured
    monitor.close()

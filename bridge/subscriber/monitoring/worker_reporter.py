"""Reports which queues a worker takes tasks from; in a worker without a subscriber, too."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from celery import Celery
from redis.exceptions import RedisError

from bridge.broker import broker_id
from bridge.config import BridgeSettings
from bridge.redis import connect
from bridge.storage import HEARTBEAT_INTERVAL_S, Storage

#: Longest wait for Redis to accept a connection, and to answer.
_TIMEOUT_S = 1.0


class WorkerReporter:
    """Reports the queues of one worker in a thread, until stopped.

    Arguments:
        app: The Celery application.
        settings: The address of the bus.
        name: Name of this worker, which no other running process uses.
        worker: Celery's worker.
    """

    def __init__(self, app: Celery, settings: BridgeSettings, name: str, worker: Any) -> None:
        self._app = app
        self._name = name
        self._worker = worker
        self._storage = Storage(connect(settings, _TIMEOUT_S), settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bridge-queues-taken", daemon=True)

    def start(self) -> None:
        """Start the thread and return at once."""
        self._thread.start()

    def stop(self) -> None:
        """Report the stop, and stop; wait for a few seconds at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * _TIMEOUT_S)

    def _run(self) -> None:
        broker, workers = broker_id(self._app), self._storage.workers
        while not self._stop.wait(HEARTBEAT_INTERVAL_S):
            with suppress(RedisError, OSError):  # without reports it is not known who takes from a queue
                workers.report(self._name, broker, _queues_taken(self._worker))
        with suppress(RedisError, OSError):  # the last report expires
            workers.leave(self._name)
        self._storage.client.close()


def _queues_taken(worker: Any) -> list[str]:
    """Return the names of the queues that a worker consumes now: remote control commands can change them."""
    consumer = getattr(getattr(worker, "consumer", None), "task_consumer", None)  # None while it has no connection
    if consumer is None:
        return []
    return [queue.name for queue in consumer.queues if consumer.consuming_from(queue)]

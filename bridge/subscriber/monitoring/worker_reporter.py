"""Reports which queues a worker takes tasks from; in a worker without a subscriber, too.

At its start it also warns of handlers whose queues no worker takes, as far as the reports tell: workers of earlier
versions, and those without ``bridge.install()``, do not report.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Any

from celery import Celery
from redis.exceptions import RedisError

from bridge.broker import Outbox, broker_id
from bridge.config import BridgeSettings
from bridge.handlers import Handler
from bridge.redis import connect
from bridge.storage import HEARTBEAT_INTERVAL_S, Storage
from bridge.subscriber.finding import first_of
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)

#: Longest wait for Redis to accept a connection, and to answer.
_TIMEOUT_S = 1.0
#: At which of its reports it checks the queues of the handlers: workers that start together have reported by then.
_CHECKED_AT = 2
#: Most handlers that a warning names.
_MAX_NAMED = 5


class WorkerReporter:
    """Reports the queues of one worker in a thread, until stopped.

    Arguments:
        app: The Celery application.
        settings: The address of the bus.
        name: Name of this worker, which no other running process uses.
        worker: Celery's worker.
        handlers: The handlers whose queues it checks.
        interval_s: Pause before each report.
    """

    def __init__(
        self,
        app: Celery,
        settings: BridgeSettings,
        name: str,
        worker: Any,
        handlers: Iterable[Handler],
        *,
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._app = app
        self._settings = settings
        self._handlers = handlers
        self._interval_s = interval_s
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
        reports = 0
        while not self._stop.wait(self._interval_s):
            with suppress(RedisError, OSError):  # without reports it is not known who takes from a queue
                taken = _queues_taken(self._worker)
                workers.report(self._name, broker, taken)
                reports += bool(taken)
                if taken and reports == _CHECKED_AT:
                    alive = [one.queues for one in workers.alive([self._settings.group]) if one.broker == broker]
                    self._warn_of_queues_not_taken(set(taken), set().union(*alive))
        with suppress(RedisError, OSError):  # the last report expires
            workers.leave(self._name)
        self._storage.client.close()

    def _warn_of_queues_not_taken(self, own: set[str], known: set[str]) -> None:
        """Log a warning for each queue of a handler that neither this worker takes, nor another one of its group."""
        senders: dict[str, list[str]] = {}
        with closing(Outbox(self._app, self._settings)) as outbox:
            for handler in self._handlers:
                for queue in outbox.queues([handler]) - own - known:
                    senders.setdefault(queue, []).append(handler.task_name)
        for queue, names in sorted(senders.items()):
            extra = log_fields(Action.QUEUE_NOT_TAKEN, group=self._settings.group, queue=queue)
            text = (
                "No worker is known to take tasks from queue %s, where those of %s wait. Start one with -Q %s, or add "
                "the queue to task_queues or to the -Q of this one: -Q %s"
            )
            together = ",".join(sorted(own | {queue}))
            log.warning(text, queue, first_of(names, _MAX_NAMED), queue, together, extra=extra)


def _queues_taken(worker: Any) -> list[str]:
    """Return the names of the queues that a worker consumes now: remote control commands can change them."""
    consumer = getattr(getattr(worker, "consumer", None), "task_consumer", None)  # None while it has no connection
    if consumer is None:
        return []
    return [queue.name for queue in consumer.queues if consumer.consuming_from(queue)]

"""Messages of handler tasks that cannot run now, and are delivered again."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.task import Context
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from bridge.errors import BusUnavailable
from bridge.handlers.handler_task import HandlerTask, facts_of
from bridge.telemetry import Action, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Delay before a message that is sent again because the bus is unavailable is delivered.
_BUS_RETRY_S = 5.0
#: Header in which a quorum queue counts how often it delivered a message before. RabbitMQ 4 drops the message at 20.
_DELIVERY_COUNT = "x-delivery-count"

_throttle = LogThrottle(600.0)  # for problems that recur with each attempt of a task


class Redelivery:
    """The ways in which the message of a task is delivered again.

    Arguments:
        task: The handler's task.
        request: Celery's request of the message.
        event: The argument of the task as received.
        group: For the log.
    """

    def __init__(self, task: HandlerTask, request: Context, event: Any, group: str) -> None:
        self._task = task
        self._request = request
        self._facts = facts_of(task, str(request.id), event, group)

    def without_bus(self, error: BusUnavailable) -> None:
        """Have the broker deliver the message again later: without the bus, the state of the task is unknown.

        Raises:
            Reject: Celery does that, if the message is not acknowledged yet.
        """
        if self._task.acks_late and not vars(self._request).get(_DELIVERY_COUNT):
            raise Reject(str(error), requeue=True) from error
        self._send_again(_BUS_RETRY_S)  # another message, whose deliveries are counted from 0
        if _throttle.allow(f"bus {self._request.id}"):
            text = "Task %s (%s) cannot start because the bus is unavailable; trying again in %.0f s: %s"
            extra = log_fields(Action.TASK_START_DELAYED, **self._facts)
            log.warning(text, self._request.id, self._task.name, _BUS_RETRY_S, error, extra=extra)

    def after(self, wait_s: float) -> None:
        """Have the message delivered again in *wait_s* seconds, because another copy of it runs.

        If the worker of that run has crashed, this copy must run. So it is delivered again when the lease ends.
        """
        self._send_again(wait_s)
        if _throttle.allow(f"running {self._request.id}"):
            text = "Task %s (%s) is already running; this copy of its message is delivered again in %.1f s"
            extra = log_fields(Action.TASK_ALREADY_RUNNING, **self._facts)
            log.info(text, self._request.id, self._task.name, wait_s, extra=extra)

    def _send_again(self, countdown_s: float) -> None:
        """Send the message again. It is not a Celery retry, which would be counted."""
        request = self._request
        try:
            self._task.signature_from_request(request, countdown=countdown_s, retries=request.retries).apply_async()
        except (OperationalError, RedisError, OSError) as error:
            raise Reject(str(error), requeue=True) from error

"""A message of a handler's task in the main process of a worker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import Reject
from celery.signals import task_revoked
from celery.worker import state
from celery.worker.request import Request

from bridge.errors import HandlerAborted
from bridge.handlers.delivery import delivery_of
from bridge.handlers.ends import detail_of, end_in_main_process
from bridge.handlers.handler_task import ends_with_worker
from bridge.handlers.interrupts import ends_worker, is_ordinary
from bridge.handlers.leases import get_leases
from bridge.handlers.progress import Stage, stop
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)


class EventRequest(Request):
    """A message of a handler's task in a worker.

    A task ends in the process that runs it. The main process ends it only if that process was killed: because the hard
    time limit was exceeded, or otherwise, if the task must not run again then.
    """

    #: Whether the hard time limit was exceeded, and how far the task was then.
    _exceeded: bool = False
    _stage: Stage | None = None
    _already_revoked: bool
    _context: Any

    def info(self, safe: bool = False) -> Any:
        """Return what ``inspect reserved`` and Flower show: the short text of the event, never its payload."""
        return super().info(safe=True)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Do what Celery does when a task has failed, and end it if its process was killed."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # without the text of its traceback
        if isinstance(error, TimeLimitExceeded) and not self._end_killed(error):
            return
        if isinstance(error, WorkerLostError) and ends_with_worker(cast("Any", self.task)):
            self._end("worker_lost", error)
        final = isinstance(error, TimeLimitExceeded) or (isinstance(error, Reject) and not cast("Any", error).requeue)
        with self._acknowledging(final):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Do what Celery does when a task has exceeded a time limit. After a hard one, it kills the pool process."""
        if soft or state.should_terminate:
            super().on_timeout(soft, timeout)
        elif self._end_killed(TimeLimitExceeded(timeout)):
            with self._acknowledging(True):
                super().on_timeout(soft, timeout)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Do what Celery does when a task is revoked or has expired, even if the result backend is not available.

        Celery would take that for a lost connection to the broker. So its worker would receive the same message again
        and again, and no other.
        """
        try:
            super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]  # not in the stubs
        except Exception as error:
            if self._already_revoked:
                raise
            group, task = get_leases().settings.group, self.task
            extra = log_fields(Action.REVOCATION_NOT_STORED, task_id=self.id, handler=task.name, group=group)
            text = "Task %s (%s) was %s, but the result backend could not store that: %s"
            log.error(text, self.id, task.name, reason, error, extra=extra)
            self.acknowledge()
            self._already_revoked = True
            fields = {"terminated": terminated, "signum": signum, "expired": expired}
            task_revoked.send(sender=task, request=self._context, **fields)

    @contextmanager
    def _acknowledging(self, final: bool) -> Iterator[None]:
        """Acknowledge the message of a task that has ended (*final*), even if Celery or a hook of the user fails.

        For example, the result backend is not available. What a hook raises does not end the worker.
        """
        try:
            yield
        except BaseException as error:
            if final:
                self.acknowledge()
            if is_ordinary(error) or ends_worker(error):
                raise
            raise HandlerAborted(detail_of(error)) from error

    def _end_killed(self, error: TimeLimitExceeded) -> bool:
        """End a task that has exceeded its hard time limit; return False if that was not in its handler."""
        first, self._exceeded = not self._exceeded, True
        if not first:
            return self._stage in (None, "handling")
        task, task_id = self.task, self.id
        self._stage = stop(cast("int | None", self.worker_pid), task_id)
        group = get_leases().settings.group
        if self._stage == "beginning":
            extra = log_fields(Action.TASK_START_DELAYED, task_id=task_id, handler=task.name, group=group)
            again = "its message is delivered again" if cast("Any", task).acks_late else "it is sent again when overdue"
            text = "Task %s (%s) waited for the bus until its time limit of %s s; %s"
            log.warning(text, task_id, task.name, error.args[0], again, extra=extra)
            state.task_ready(self)
            self.reject(requeue=True)
            return False
        if self._stage == "ending":
            extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=group)
            text = "Task %s (%s) succeeded, but the record of its end waited for the bus until its time limit of %s s"
            log.warning(text, task_id, task.name, error.args[0], extra=extra)
            get_leases().end_in_background(task_id)
            state.task_ready(self)
            self.acknowledge()
            return False
        if self._stage == "retrying":  # the retry does not wait for the lease of its run, which has no end to record
            extra = log_fields(Action.RETRY_DELAYED, task_id=task_id, handler=task.name, group=group)
            text = "Task %s (%s) is retried, but releasing its lease waited for the bus until its time limit of %s s"
            log.warning(text, task_id, task.name, error.args[0], extra=extra)
            state.task_ready(self)
            self.acknowledge()
            return False
        if cast("Any", task).acks_on_timeout or not task.acks_late:  # otherwise Celery has the message delivered again
            self._end("failure", error)
        return True

    def _end(self, reason: str, error: Exception) -> None:
        delivery = delivery_of(self.request_dict)
        end_in_main_process(self.task.name, self.id, self.args, delivery, reason, detail_of(error))

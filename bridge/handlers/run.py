"""One run of a handler's task in a worker, from its lease to its end."""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager
from typing import Any, cast

from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, TaskPredicate

from bridge.bus import handling, run_state
from bridge.errors import BusUnavailable, HandlerAborted, InvalidEvent
from bridge.events import Event
from bridge.handlers.delivery import delay_s, delivery_of
from bridge.handlers.effects import EndedElsewhere
from bridge.handlers.ends import dead_letter_of, detail_of, traceback_of
from bridge.handlers.handler_task import HandlerTask, ends_with_worker, facts_of
from bridge.handlers.interrupts import ends_worker, is_interruption, is_ordinary, soft_limit
from bridge.handlers.leases import end_of, get_leases
from bridge.handlers.progress import Progress, Stage
from bridge.handlers.redelivery import Redelivery
from bridge.storage import DeadLetter
from bridge.telemetry import Action, LogThrottle, log_fields, redacting_errors

log = logging.getLogger(__name__)

#: How long the bus may delay the begin of a task with a time limit; a tenth of the limit, if that is longer.
_LONGEST_WAIT_S = 1.0

_throttle = LogThrottle(600.0)  # for problems that recur with each attempt of a task


class Run:
    """One run of a task in a worker process.

    - *begin*: acquire the lease of the task. A copy goes no further if the task has ended, is running or was retried.
    - *validate*: decode the event. A payload that the handler's model rejects ends the task.
    - *call*: run the handler. Its soft time limit interrupts only this code and the validation.
    - *settle*: record the end of the task with its done mark or dead letter, or release the lease for a retry.
    - *finish*: settle what Celery does after the handler, when it has done it.

    Arguments:
        task: The handler's task.
        request: Celery's request of this run.
        event: The argument of the task as received: an event as JSON, unless the task was sent by hand.
    """

    def __init__(self, task: HandlerTask, request: Context, event: Any) -> None:
        self._task = task
        self._request = request
        self._event = event
        self._task_id = str(request.id)
        self._state = run_state(request)
        self._leases = get_leases()
        self._progress = Progress(self._task_id)
        #: How far it is. None: Celery or a hook of the user has called no handler of the bridge yet.
        self._stage: Stage | None = None
        #: Whether it is decided what becomes of the task. What Celery does afterwards does not change that.
        self._settled = False

    def execute(self) -> Any:
        """Run the task and return the result of its handler.

        Raises:
            Ignore: The handler is not called: the message is a duplicate, or is delivered again later, or the task has
                ended in a dead letter.
            Reject: The handler is not called, or the end of its task cannot be recorded: the bus or the broker is
                unavailable. The message goes back to its queue.
            HandlerAborted: The handler has raised an exception that is not an ``Exception``.
            BaseException: The handler has raised it.
        """
        self._reached("beginning")
        soft_limit.defer()
        try:
            self._begin()
            if not self._reached("handling"):  # the code of the user: first its model, then its function
                self._give_back("its hard time limit was exceeded before")
                raise Ignore
            soft_limit.allow()
            return self._call(self._validate())
        finally:
            soft_limit.allow()

    def _call(self, event: Event[Any]) -> Any:
        self._state.event = event
        try:
            with handling(event), self._redacting_errors():
                result = self._task.call_handler(event)
        except BaseException as error:
            soft_limit.defer()
            if ends_worker(error):
                raise  # the message is delivered again, and the lease expires
            self._settle(error)
            if is_ordinary(error):
                raise
            raise HandlerAborted(detail_of(error)) from error
        soft_limit.defer()
        request = self._request
        if not (request.chain or request.callbacks or request.chord):
            self._succeed()  # otherwise when Celery has sent these
        return result

    def finish(self, error: BaseException | None, traceback: str) -> None:
        """Settle the task when Celery has done everything after the handler, or has not called it.

        Arguments:
            error: What Celery, or a hook of the user, has raised at last; None if the task succeeded.
            traceback: Of the error, as text.

        Raises:
            Reject: The message goes back to its queue: it was interrupted before its handler was called, or its end
                cannot be recorded.
        """
        if self._settled:
            if error is not None and self._stage == "ending" and not isinstance(error, TaskPredicate):
                extra = log_fields(Action.TASK_FAILED_AFTER_SUCCESS, reason=type(error).__name__, **self._facts())
                text = "Task %s (%s) completed, but a later step failed, such as storing its result: %r"
                log.error(text, self._task_id, self._task.name, error, extra=extra)
            return
        soft_limit.defer()
        try:
            self._finish(error, traceback)
        finally:
            soft_limit.allow()

    def _finish(self, error: BaseException | None, traceback: str) -> None:
        if self._stage == "beginning" and is_interruption(error):
            self._give_back("it was interrupted before it began")
        elif self._stage == "ending" or self._state.retry or error is None:
            self._succeed()
        elif isinstance(error, Ignore):  # of a hook, before the handler was called
            self._end(None)
        elif isinstance(error, Reject) and not cast("Any", error).requeue:
            self._end_in_dead_letter("rejected", str(cast("Any", error).reason))
        elif not isinstance(error, Reject | Retry):
            self._end_in_dead_letter("failure", detail_of(error), traceback)

    # Begin

    def _begin(self) -> None:
        asked_s = time.monotonic()
        try:
            delivery, idempotent = delivery_of(vars(self._request)), self._task.idempotent
            deaths = 0 if ends_with_worker(self._task) else None
            begun = self._leases.begin(self._task_id, idempotent=idempotent, delivery=delivery, max_deaths=deaths)
        except BusUnavailable as error:
            self._settled = True
            self._redelivery.without_bus(error)
            raise Ignore from error
        if begun.result == "started":
            self._state.began_s = time.monotonic()
            if soft_limit.struck or self._state.began_s - asked_s > self._longest_wait_s():
                self._give_back("it waited for the bus too long to keep its time limits")
                raise Ignore
            return
        self._settled = begun.result in ("ended", "superseded", "running")
        if begun.result == "running":
            self._redelivery.after(begun.left_ms / 1000)
        elif self._settled:
            self._announce("task-deduplicated")
        elif begun.result == "stale":
            detail = "its message was sent more than dedup_ttl_s ago: it is no longer known whether the task has run"
            self._end_in_dead_letter("stale_message", detail)
        else:
            detail = f"its worker process crashed {begun.deaths} times while it ran"
            self._end_in_dead_letter("worker_lost", detail)
            self._store_failure(RuntimeError(detail))
        raise Ignore

    def _give_back(self, why: str) -> None:
        """Have the message delivered again, because the handler was not called.

        Raises:
            Reject: Celery does that, if the message is not acknowledged yet.
        """
        self._release(0.0, self._request.retries or 0)
        self._redelivery.without_bus(BusUnavailable(f"task {self._task_id} did not begin: {why}"))

    def _longest_wait_s(self) -> float:
        """Return how long the bus may delay the begin. Celery's time limits include it, but are for the handler."""
        request, task = self._request, self._task
        hard_s, soft_s = request.timelimit or (None, None)
        limits_s = [limit_s for limit_s in (hard_s or task.time_limit, soft_s or task.soft_time_limit) if limit_s]
        return max(_LONGEST_WAIT_S, min(limits_s) / 10) if limits_s else math.inf

    # Validate

    def _validate(self) -> Event[Any]:
        try:
            with self._redacting_errors():
                return self._task.event_model.from_dict(self._event)
        except InvalidEvent as error:
            soft_limit.defer()
            self._end_invalid(error)
            raise Ignore from error

    def _end_invalid(self, error: InvalidEvent) -> None:
        # A retry cannot help. The stored result is FAILURE; raising Ignore keeps the state that the worker event gives
        # the task in Flower.
        if not self._end_in_dead_letter("payload", str(error)):
            raise error  # sent by hand, without an event: it fails like any other task
        self._store_failure(error)

    # Settle

    def _settle(self, error: BaseException) -> None:
        """Settle a run whose handler raised *error*: its own error, or Celery's ``Retry``, ``Reject`` or ``Ignore``."""
        retry = error if isinstance(error, Retry) else self._state.retry
        if isinstance(error, EndedElsewhere):
            self._leases.release_locally(self._task_id)
            self._settled = True
            self._announce("task-deduplicated")
        elif retry is not None:
            self._hand_on(retry)
        elif isinstance(error, Reject) and cast("Any", error).requeue:
            self._reached("beginning")  # again: its message goes back to the queue
            self._release(0.0, self._request.retries or 0)
        elif isinstance(error, Reject):
            self._end_in_dead_letter("rejected", str(cast("Any", error).reason))
        elif isinstance(error, Ignore):
            self._succeed()
        else:  # autoretry_for has turned all others into a Retry
            self._end_in_dead_letter("failure", detail_of(error), traceback_of(error))

    def _hand_on(self, retry: Retry) -> None:
        """Leave the task to its retry, which was sent. Whatever this run does after that is not the end of the task."""
        if self._reached("retrying"):  # otherwise the main process has ended the task
            self._release(delay_s(retry), (self._request.retries or 0) + 1)

    def _release(self, delay_s: float, retries: int) -> None:
        self._settled = True
        try:
            self._leases.release(self._task_id, delay_s, retries)
        except BusUnavailable as unavailable:
            extra = log_fields(Action.RETRY_DELAYED, **self._facts())
            text = "Task %s (%s) runs again, but its lease could not be released; retrying in the background: %s"
            log.warning(text, self._task_id, self._task.name, unavailable, extra=extra)

    def _succeed(self) -> None:
        if self._state.retry is not None:
            self._hand_on(self._state.retry)
        elif self._reached("ending"):
            self._end(None)
        self._settled = True  # also if the main process has ended the task, just before

    def _end_in_dead_letter(self, reason: str, detail: str, traceback: str = "") -> bool:
        """End the task in a dead letter; return False if it has no event, so that nothing can be kept."""
        handler, attempts = self._task.name, (self._request.retries or 0) + 1
        dead_letter = dead_letter_of(
            handler, self._task_id, self._event, reason, detail, traceback=traceback, attempts=attempts
        )
        if dead_letter is None:
            self._settled = True
            self._leases.release_locally(self._task_id)
            return False
        self._end(dead_letter)
        self._announce("task-deadlettered", reason=reason, exception=detail)
        return True

    def _end(self, dead_letter: DeadLetter | None) -> None:
        never_begun = delivery_of(vars(self._request)) if self._stage is None else None
        try:
            self._leases.end(self._task_id, dead_letter, end_of(self._request), unless_begun=never_begun)
        except BusUnavailable as error:  # the worker stops
            self._settled = True
            if self._task.acks_late:
                raise Reject(str(error), requeue=True) from error
        self._settled = True

    def _reached(self, stage: Stage) -> bool:
        self._stage = stage
        return self._progress.reached(stage)

    def _store_failure(self, error: Exception) -> None:
        task = self._task
        task.backend.mark_as_failure(self._task_id, error, request=self._request, store_result=not task.ignore_result)

    def _announce(self, event_type: str, **fields: Any) -> None:
        """Send a custom worker event; Flower shows it as the state of the task."""
        self._state.announced = event_type, fields
        try:
            self._task.send_event(event_type, retry=False, **fields)
        except Exception as error:  # noqa: BLE001  # of any broker client; a worker event must not fail the task
            if _throttle.allow(event_type):
                extra = log_fields(Action.WORKER_EVENT_FAILED, **self._facts())
                text = "Could not send the worker event %s for task %s: %s"
                log.warning(text, event_type, self._task_id, error, extra=extra)

    def _redacting_errors(self) -> AbstractContextManager[None]:
        return redacting_errors(self._leases.settings.redaction, self._event)

    @property
    def _redelivery(self) -> Redelivery:
        return Redelivery(self._task, self._request, self._event, self._leases.settings.group)

    def _facts(self) -> dict[str, Any]:
        return facts_of(self._task, self._task_id, self._event, self._leases.settings.group)

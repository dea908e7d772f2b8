"""One run of a handler's task in a worker, from its lease to its end."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from bridge.bus import handling, run_state
from bridge.errors import BusUnavailable, InvalidEvent
from bridge.events import Event
from bridge.handlers.delivery import delay_s, delivery_of, mark_retries
from bridge.handlers.effects import EndedElsewhere
from bridge.handlers.leases import end_of, get_leases
from bridge.storage import DeadLetter, Delivery, dead_letter_fields
from bridge.telemetry import Action, LogThrottle, log_fields, redacting_errors

log = logging.getLogger(__name__)

#: Delay before the message of a task with early acknowledgement is delivered again if the bus is unavailable.
_BUS_RETRY_S = 5.0
#: Maximum length of an event's id or type in a log line: anyone can send such a task by hand.
_LOGGED_CHARS = 200

_throttle = LogThrottle(600.0)  # for problems that recur with each attempt of a task


class HandlerTask(Protocol):
    """What a run needs of its Celery task, an ``EventTask``."""

    name: str
    acks_late: bool
    idempotent: bool
    event_model: type[Event[Any]]
    ignore_result: bool

    @property
    def backend(self) -> Any:
        """The result backend."""

    @property
    def run(self) -> Any:
        """The handler's function, bound to the task if the handler wants that."""

    def signature_from_request(self, request: Any = ..., **options: Any) -> Any:
        """Return the message of *request*, to be sent again."""

    def send_event(self, type_: str, **fields: Any) -> Any:
        """Send a worker event."""


class Run:
    """One run of a task in a worker process.

    - *begin*: acquire the lease of the task. A copy goes no further if the task has ended, is running or was retried.
    - *validate*: decode the event. A payload that the handler's model rejects ends the task.
    - *call*: run the handler.
    - *settle*: record the end of the task with its done mark or dead letter, or release the lease for a retry.

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

    def execute(self) -> Any:
        """Run the task and return the result of its handler.

        Raises:
            Ignore: The handler is not called: the message is a duplicate, or is delivered again later, or the task has
                ended in a dead letter.
            Reject: The handler is not called: the bus or the broker is unavailable. The message goes back to its queue.
            BaseException: The handler has raised it.
        """
        self._begin()
        event = self._validate()
        try:
            with handling(event), self._redacting_errors():
                result = self._task.run(event)
        except BaseException as error:
            self._settle(error)
            raise
        request = self._request
        if not (request.chain or request.callbacks or request.chord):
            self.end()  # otherwise on_success() does, after Celery has sent these
        return result

    def end(self) -> None:
        """Record that the task has succeeded, unless its end is recorded already."""
        if not self._state.ended:
            self._end(None)

    def fail(self, error: Exception, traceback: str) -> None:
        """End the task in a dead letter: it has failed permanently, with an *error* of its handler or of Celery."""
        if self._state.ended:
            extra = log_fields(Action.TASK_FAILED_AFTER_SUCCESS, reason=type(error).__name__, **self._facts())
            text = "Task %s (%s) completed, but a later step failed, such as storing its result: %r"
            log.error(text, self._task_id, self._task.name, error, extra=extra)
            return
        try:
            event = Event.from_dict(self._event)
        except InvalidEvent as invalid:
            _log_without_event(self._task.name, self._task_id, "failure", invalid, self._leases.settings.group)
        else:
            self._end_in_dead_letter(event, "failure", f"{type(error).__name__}: {error}", traceback)

    # Begin

    def _begin(self) -> None:
        try:
            delivery = delivery_of(vars(self._request))
            begun = self._leases.begin(self._task_id, idempotent=self._task.idempotent, delivery=delivery)
        except BusUnavailable as error:
            self._postpone(error)
            raise Ignore from error
        if begun.result == "started":
            self._state.began_s = time.monotonic()
            mark_retries(self._request, self._leases.token_of(self._task_id))
            return
        if begun.result in ("ended", "superseded"):
            self._announce("task-deduplicated")
        elif begun.result == "running":
            self._wait_for_other_run(begun.left_ms / 1000)
        elif begun.result == "stale":
            detail = "its message was sent before dedup_ttl_s: whether the task has run already is no longer known"
            self._end_in_dead_letter(Event.from_dict(self._event), "stale_message", detail)
        else:
            detail = f"its worker process crashed {begun.deaths} times while it ran"
            self._end_in_dead_letter(Event.from_dict(self._event), "worker_lost", detail)
            self._store_failure(RuntimeError(detail))
        raise Ignore

    def _postpone(self, error: BusUnavailable) -> None:
        """Have the broker deliver the message again later: without the bus, the state of the task is unknown."""
        if self._task.acks_late:
            raise Reject(str(error), requeue=True) from error
        self._send_again(_BUS_RETRY_S)
        if _throttle.allow(f"bus {self._task_id}"):
            extra = log_fields(Action.TASK_START_DELAYED, **self._facts())
            text = "Task %s (%s) cannot start because the bus is unavailable; trying again in %.0f s: %s"
            log.warning(text, self._task_id, self._task.name, _BUS_RETRY_S, error, extra=extra)

    def _wait_for_other_run(self, wait_s: float) -> None:
        # If the worker of the other run has crashed, this copy must run. So it is delivered again when the lease ends.
        self._send_again(wait_s)
        if _throttle.allow(f"running {self._task_id}"):
            extra = log_fields(Action.TASK_ALREADY_RUNNING, **self._facts())
            text = "Task %s (%s) is already running; this copy of its message is delivered again in %.1f s"
            log.info(text, self._task_id, self._task.name, wait_s, extra=extra)

    def _send_again(self, countdown_s: float) -> None:
        """Send the message again. It is not a Celery retry, which would be counted."""
        request = self._request
        try:
            self._task.signature_from_request(request, countdown=countdown_s, retries=request.retries).apply_async()
        except (OperationalError, RedisError, OSError) as error:
            raise Reject(str(error), requeue=True) from error

    # Validate

    def _validate(self) -> Event[Any]:
        try:
            with self._redacting_errors():
                return self._task.event_model.from_dict(self._event)
        except InvalidEvent as error:
            self._end_invalid(error)
            raise Ignore from error

    def _end_invalid(self, error: InvalidEvent) -> None:
        try:
            event = Event.from_dict(self._event)
        except InvalidEvent:
            # Sent by hand, without an event: it fails like any other task.
            self._leases.release_locally(self._task_id)
            raise
        # A retry cannot help. The stored result is FAILURE; raising Ignore keeps the state that the worker event gives
        # the task in Flower.
        self._end_in_dead_letter(event, "payload", str(error))
        self._store_failure(error)

    # Settle

    def _settle(self, error: BaseException) -> None:
        """Settle a run whose handler raised *error*: its own error, or Celery's ``Retry``, ``Reject`` or ``Ignore``."""
        if isinstance(error, EndedElsewhere):
            self._leases.release_locally(self._task_id)
            self._announce("task-deduplicated")
        elif isinstance(error, Retry) or (isinstance(error, Reject) and cast("Any", error).requeue):
            try:
                due = (self._request.retries or 0) + isinstance(error, Retry)
                self._leases.release(self._task_id, delay_s(error), due)
            except BusUnavailable as unavailable:
                extra = log_fields(Action.RETRY_DELAYED, **self._facts())
                text = "The retry of task %s (%s) is delayed until its lease expires: %s"
                log.warning(text, self._task_id, self._task.name, unavailable, extra=extra)
        elif isinstance(error, Reject):
            self._end_in_dead_letter(Event.from_dict(self._event), "rejected", str(cast("Any", error).reason))
        elif isinstance(error, Ignore):
            self.end()
        else:
            self._leases.release_locally(self._task_id)  # Celery calls on_failure(), or the process ends

    def _end_in_dead_letter(self, event: Event[Any], reason: str, detail: str, traceback: str = "") -> None:
        more = {"traceback": traceback, "attempts": (self._request.retries or 0) + 1}
        dead_letter = DeadLetter.of_event(reason, detail, event, event.encode(), self._task.name, self._task_id, **more)
        _log_dead_letter(dead_letter, event, self._leases.settings.group)
        self._end(dead_letter)
        self._announce("task-deadlettered", reason=reason, exception=detail)

    def _end(self, dead_letter: DeadLetter | None) -> None:
        self._leases.end(self._task_id, dead_letter, end_of(self._request))
        self._state.ended = True

    def _store_failure(self, error: Exception) -> None:
        task = self._task
        task.backend.mark_as_failure(self._task_id, error, request=self._request, store_result=not task.ignore_result)

    def _announce(self, event_type: str, **fields: Any) -> None:
        """Send a custom worker event; Flower shows it as the state of the task."""
        try:
            self._task.send_event(event_type, retry=False, **fields)
        except Exception as error:  # noqa: BLE001  # of any broker client; a worker event must not fail the task
            if _throttle.allow(event_type):
                extra = log_fields(Action.WORKER_EVENT_FAILED, **self._facts())
                text = "Could not send the worker event %s for task %s: %s"
                log.warning(text, event_type, self._task_id, error, extra=extra)

    def _redacting_errors(self) -> AbstractContextManager[None]:
        return redacting_errors(self._leases.settings.redaction, self._event)

    def _facts(self) -> dict[str, Any]:
        """Return the fields of a log line about this run."""
        event = self._event if isinstance(self._event, dict) else {}
        return {
            "event_id": str(event.get("id", ""))[:_LOGGED_CHARS],
            "event_type": str(event.get("type", ""))[:_LOGGED_CHARS],
            "task_id": self._task_id,
            "handler": self._task.name,
            "group": self._leases.settings.group,
        }


def end_in_main_process(
    handler: str,
    task_id: str,
    args: Any,
    reason: str,
    detail: str,
    traceback: str = "",
    *,
    unless_begun: Delivery | None = None,
) -> None:
    """End a task in a dead letter from the main process of a worker, which does not run it and must not be blocked.

    Arguments:
        handler: Name of the task.
        args: Arguments of the task: its event as JSON, unless it was sent by hand.
        unless_begun: The message that was dropped. Do nothing if the task has ended, is running or was retried.
    """
    leases = get_leases()
    try:
        event = Event.from_dict(args[0])
    except (InvalidEvent, LookupError, TypeError) as error:
        _log_without_event(handler, task_id, reason, error, leases.settings.group)
        return
    more = {"traceback": traceback, "attempts": unless_begun.retries + 1 if unless_begun else 1}
    dead_letter = DeadLetter.of_event(reason, detail, event, event.encode(), handler, task_id, **more)
    _log_dead_letter(dead_letter, event, leases.settings.group)
    leases.end_in_background(task_id, dead_letter, unless_begun=unless_begun)


def _log_dead_letter(dead_letter: DeadLetter, event: Event[Any], group: str) -> None:
    extra = dead_letter_fields(Action.DEAD_LETTER, dead_letter, group)
    cause = dead_letter.detail.partition("\n")[0]
    text = "Task %s (%s) ended in a dead letter (%s), event %s (%s): %s"
    log.warning(
        text, dead_letter.task_id, dead_letter.handler, dead_letter.reason, event.id, event.type, cause, extra=extra
    )


def _log_without_event(handler: str, task_id: str, reason: str, error: Exception, group: str) -> None:
    extra = log_fields(Action.TASK_WITHOUT_EVENT_FAILED, task_id=task_id, handler=handler, group=group, reason=reason)
    text = "Task %s (%s) failed. It was sent without an event, so there is no dead letter: %s"
    log.error(text, task_id, handler, error, extra=extra)

"""What the log lines about tasks and dead letters carry."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from celery import Task
from celery.canvas import _chain
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, WatchError

from bridge.bus import count_publications, get_bus, handling
from bridge.errors import BusUnavailable, InvalidEvent, InvalidHandler
from bridge.events import EncodedEvent, Event
from bridge.handlers.leases import get_leases
from bridge.storage import Begun, DeadLetter
from bridge.telemetry import Action, LogThrottle, log_fields

#: Characters of an event's id or type that are shown: somebody may have sent anything by hand.
_SHOWN_CHARS = 200


def task_fields(
    action: Action,
    task: Task[..., Any],
    task_id: str | None,
    event: Event[Any] | dict[str, Any] | None,
    reason: str = "",
) -> dict[str, Any]:
    """Return ``extra`` of a log call about a task and its event, which may be as it came with the message."""
    event_id = event_type = ""
    if isinstance(event, Event):
        event_id, event_type = event.id, event.type
    elif isinstance(event, dict):
        event_id, event_type = (str(event.get(name, ""))[:_SHOWN_CHARS] for name in ("id", "type"))
    return log_fields(
        action,
        event_id=event_id,
        event_type=event_type,
        task_id=task_id,
        handler=task.name,
        group=get_bus().settings.group,
        reason=reason,
    )


log = logging.getLogger(__name__)

#: Pause before a task with early acknowledgement looks for the bus again.
_BUS_AWAY_RETRY_S = 5.0
#: Attribute of a request: the end of its task is noted. What Celery cannot do afterwards is no failure of the task.
_ENDED = "bridge_ended"
_pace = LogThrottle(600.0)  # of trouble that a task meets again and again while it lasts


class EventRequest(Request):
    """A message of a handler task in a worker."""

    def info(self, safe: bool = False) -> Any:
        """Return what ``inspect reserved`` and Flower show: the short text of the event, never its payload."""
        return super().info(safe=True)


class EventTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """Base class of the tasks that ``@on_event`` makes."""

    abstract = True
    Request = "bridge.handlers.task:EventRequest"

    #: A message is acknowledged when its task has ended, so that a killed worker loses none.
    acks_late = True
    reject_on_worker_lost = True
    #: Celery would write STARTED to the result backend first, and drop the message when that does not answer.
    track_started = False

    #: Whether a second copy of the message must not run the task again: not after it has ended, nor while it runs.
    idempotent = True
    #: ``Event``, or ``Event[Model]`` for a handler that wants its payload validated.
    event_model: type[Event[Any]] = Event
    #: Options of the decorator that concern sending, e.g. ``queue``. Celery frowns on them as task attributes.
    send_options: Mapping[str, Any] = {}

    def __call__(self, event: Event[Any] | dict[str, Any]) -> Any:
        """Run the handler: from a worker with the event as JSON, or called as a plain function, as in a test."""
        request = self.request
        if request.called_directly or isinstance(event, Event):
            return self._run(event, super().__call__)
        if request.is_eager:
            return self._run(event, self.run)
        return self._run_once(event)

    def apply_async(  # type: ignore[override]  # options pass through, whatever Celery takes
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Send the task, with the options of the decorator as defaults and a short text of its event."""
        options = {**self.send_options, **options}
        if args:
            options.setdefault("argsrepr", describe(args[0]))
        return super().apply_async(args, kwargs, **options)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Send the task again, as Celery does. When the broker takes no message, the one that is here comes again.

        Celery would drop it.
        """
        try:
            return super().retry(*args, **options)
        except Reject as error:
            raise Reject(cast("Any", error).reason, requeue=True) from error

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Keep the event of a task that failed for good as a dead letter. Called by Celery after the last retry."""
        if self.request.is_eager:
            return
        if getattr(self.request, _ENDED, False):
            extra = task_fields(Action.TASK_FAILED_AFTER_SUCCESS, self, task_id, args and args[0], type(exc).__name__)
            log.error("task %s has ended; what follows its end failed: %r", task_id, exc, extra=extra)
            return
        self.give_up("failure", f"{type(exc).__name__}: {exc}", task_id, args, str(getattr(einfo, "traceback", "")))

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """End a task that is followed by others, once Celery has sent those. Called by Celery."""
        if not (self.request.is_eager or getattr(self.request, _ENDED, False)):
            self._end(task_id)

    def replace(self, sig: Any) -> Any:
        """Let another task take the place of this one, as Celery does.

        Raises:
            InvalidHandler: It is a handler. It would have the id of this task, and be skipped as a copy of it.
        """
        last = sig.tasks[-1] if isinstance(sig, _chain) else sig
        if isinstance(self.app.tasks.get(str(last.task)), EventTask):
            raise InvalidHandler(
                f"{self.name} cannot be replaced by {last.task}, which is a handler too: publish an event for it, or "
                "call it as a function"
            )
        return super().replace(sig)

    def give_up(
        self, reason: str, detail: str, task_id: str, args: Any, traceback: str = "", *, unless_begun: bool = False
    ) -> None:
        """End a task in a dead letter with its event, the first of *args*.

        With *unless_begun* nothing happens if it has ended, or another copy of its message runs.
        """
        try:
            event = Event.from_dict(args[0])
        except (InvalidEvent, LookupError, TypeError) as error:
            extra = task_fields(Action.TASK_WITHOUT_EVENT_FAILED, self, task_id, None, reason)
            log.error("no dead letter for task %s, which somebody sent by hand: %s", task_id, error, extra=extra)
        else:
            self._fail(reason, detail, task_id, event, traceback, unless_begun)

    def _run(self, event: Event[Any] | dict[str, Any], run: Any) -> Any:
        typed = event if isinstance(event, self.event_model) else self.event_model.model_validate(event)
        with handling(typed):
            return run(typed)

    def _run_once(self, event: dict[str, Any]) -> Any:
        task_id = str(self.request.id)
        executions = get_leases()
        try:
            begun = executions.begin(task_id, idempotent=self.idempotent, retries=self.request.retries or 0)
            if begun.outcome != "begun":
                self._not_begun(begun, task_id, event)
                raise Ignore
            typed = self._validated(event, task_id)
        except BusUnavailable as error:
            # Nothing has run yet: the message goes back, or, acknowledged already, out again.
            if self.acks_late:
                raise Reject(str(error), requeue=True) from error
            self._send_again(_BUS_AWAY_RETRY_S)
            if _pace.allow(f"bus {task_id}"):
                extra = task_fields(Action.TASK_START_DELAYED, self, task_id, event)
                log.warning("task %s waits for the bus: %s", task_id, error, extra=extra)
            raise Ignore from error
        except InvalidEvent:
            executions.release_locally(task_id)
            raise
        count_publications(self.request)
        try:
            with handling(typed), executions.redacting_errors(event):
                result = self.run(typed)
        except BaseException as error:
            if isinstance(error, WatchError) and executions.has_ended(task_id):
                executions.release_locally(task_id)
                self._announce("task-deduplicated")
                raise Ignore from error
            self._left(error, task_id, event)
            raise
        request = self.request
        if not (request.chain or request.callbacks or request.chord):
            self._end(task_id)
        return result

    def _left(self, error: BaseException, task_id: str, event: dict[str, Any]) -> None:
        """Note that a run was left with *error*, which is how Celery's own outcomes come as well."""
        executions = get_leases()
        if isinstance(error, Retry) or (isinstance(error, Reject) and cast("Any", error).requeue):
            try:
                executions.release(task_id, _delay_s(error))
            except BusUnavailable as away:
                extra = task_fields(Action.RETRY_DELAYED, self, task_id, event)
                log.warning("the retry of task %s waits for its lease: %s", task_id, away, extra=extra)
        elif isinstance(error, Reject):
            self.give_up("rejected", str(cast("Any", error).reason), task_id, [event])
        elif isinstance(error, Ignore):
            self._end(task_id)
        else:
            executions.release_locally(task_id)  # Celery calls on_failure(), or the process dies

    def _not_begun(self, begun: Begun, task_id: str, event: dict[str, Any]) -> None:
        if begun.outcome == "ended":
            self._announce("task-deduplicated")
        elif begun.outcome == "running":
            # If that copy's worker has died, this one is to run: neither drop it nor let it go round in circles.
            wait_s = begun.left_ms / 1000
            self._send_again(wait_s)
            if _pace.allow(f"elsewhere {task_id}"):
                extra = task_fields(Action.TASK_ALREADY_RUNNING, self, task_id, event)
                log.info("task %s runs elsewhere; this copy looks again in %.1f s", task_id, wait_s, extra=extra)
        else:
            detail = f"its worker died {begun.deaths} times while it ran"
            self._fail("worker_lost", detail, task_id, Event.from_dict(event))
            self._store_failure(task_id, RuntimeError(detail))

    def _send_again(self, countdown_s: float) -> None:
        """Send this message again; no retry of Celery's, which are counted."""
        request = self.request
        try:
            self.signature_from_request(request, countdown=countdown_s, retries=request.retries).apply_async()
        except (OperationalError, RedisError, OSError) as error:
            raise Reject(str(error), requeue=True) from error

    def _validated(self, event: dict[str, Any], task_id: str) -> Event[Any]:
        try:
            with get_leases().redacting_errors(event):
                return self.event_model.from_dict(event)
        except InvalidEvent as error:
            # What somebody sent by hand and is no event at all fails here, as any task does.
            whole = Event.from_dict(event)
            # No retry can mend it. The result says FAILURE to who waits for it; Ignore keeps the state that
            # the custom event gives the task in Flower.
            self._fail("payload", str(error), task_id, whole)
            self._store_failure(task_id, error)
            raise Ignore from error

    def _store_failure(self, task_id: str, error: Exception) -> None:
        self.backend.mark_as_failure(task_id, error, request=self.request, store_result=not self.ignore_result)

    def _end(self, task_id: str, letter: DeadLetter | None = None) -> None:
        get_leases().end(task_id, letter)
        setattr(self.request, _ENDED, True)

    def _fail(
        self,
        reason: str,
        detail: str,
        task_id: str,
        event: Event[Any],
        traceback: str = "",
        unless_begun: bool = False,
    ) -> None:
        attempts = (self.request.retries or 0) + 1
        letter = DeadLetter.of_event(
            reason, detail, event, event.encode(), self.name, task_id, traceback=traceback, attempts=attempts
        )
        extra = task_fields(Action.DEAD_LETTER, self, task_id, event, reason)
        log.warning("dead letter (%s): %s of %r", reason, self.name, event, extra=extra)
        if self.request.id is None:
            # In a worker's main process, after a hard time limit or a revocation, which Celery announces.
            get_leases().end_in_background(task_id, letter, unless_begun=unless_begun)
        else:
            self._end(task_id, letter)
            self._announce("task-deadlettered", reason=reason, exception=detail)

    def _announce(self, event_type: str, **fields: Any) -> None:
        """Send a custom worker event; Flower shows it as the state of the task."""
        try:
            self.send_event(event_type, retry=False, **fields)
        except Exception as error:  # noqa: BLE001  # whatever the broker's client raises, the task is what matters
            if _pace.allow(event_type):
                extra = task_fields(Action.WORKER_EVENT_FAILED, self, self.request.id, None)
                log.warning("monitors were not told %s of task %s: %s", event_type, self.request.id, error, extra=extra)


def _delay_s(error: BaseException) -> float:
    when = getattr(error, "when", None)  # of a Retry: seconds, or a moment
    if isinstance(when, datetime):
        return (when - datetime.now(when.tzinfo or UTC)).total_seconds()
    return float(when or 0)


def end_revoked(sender: Any, request: Any = None, expired: bool = False, terminated: bool = False, **_: Any) -> None:
    """Keep the event of a task that was revoked, or has expired: the ledger would send it again. Called by Celery.

    Not if it was a mere copy of its message, and the task has ended or runs; *terminated*: it was this run.
    """
    if isinstance(sender, EventTask):
        reason = "expired" if expired else "revoked"
        sender.give_up(reason, f"its message was {reason}", str(request.id), request.args, unless_begun=not terminated)


def describe(event: Any) -> str:
    """Return the arguments of a handler task as Flower and the logs show them: no payload, no secrets."""
    if type(event) is EncodedEvent:
        return f"({event!r},)"
    if isinstance(event, dict):
        try:
            event = Event.from_dict(event)
        except InvalidEvent:
            return "(<Event invalid>,)"
    return f"({event!r},)" if isinstance(event, Event) else "(...)"

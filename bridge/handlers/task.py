"""The Celery task of a handler: what Celery calls."""

from __future__ import annotations

from typing import Any, cast

from celery import Task
from celery.canvas import _chain
from celery.exceptions import Reject
from celery.worker.request import Request

from bridge.bus import handling, run_state
from bridge.errors import InvalidEvent, InvalidHandler
from bridge.events import EncodedEvent, Event
from bridge.handlers.handler import registry
from bridge.handlers.run import Run, end_in_main_process


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

    def __call__(self, event: Event[Any] | dict[str, Any]) -> Any:
        """Run the handler: from a worker with the event as JSON, or called as a plain function, as in a test."""
        request = self.request
        if request.called_directly or isinstance(event, Event):
            return self._call(event, super().__call__)
        if request.is_eager:
            return self._call(event, self.run)
        return Run(self, request, event).execute()

    def apply_async(  # type: ignore[override]  # options pass through, whatever Celery takes
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Send the task, with the options of the decorator as defaults and a short text of its event."""
        handler = registry.get(self.name)
        if handler is not None:
            options = {**handler.send_options, **options}
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
        request = self.request
        if request.is_eager:
            return
        traceback = str(getattr(einfo, "traceback", ""))
        if request.id is None:  # the main process of a worker, after a hard time limit or the loss of a child
            end_in_main_process(self.name, task_id, args, "failure", f"{type(exc).__name__}: {exc}", traceback)
        else:
            Run(self, request, args[0] if args else None).fail(exc, traceback)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """End a task that is followed by others, once Celery has sent those. Called by Celery."""
        request = self.request
        if not (request.is_eager or run_state(request).ended):
            Run(self, request, args[0] if args else None).end()

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

    def _call(self, event: Event[Any] | dict[str, Any], function: Any) -> Any:
        """Call the handler as a function: no lease and no record of its end."""
        typed = event if isinstance(event, self.event_model) else self.event_model.model_validate(event)
        with handling(typed):
            return function(typed)


def end_revoked(sender: Any, request: Any = None, expired: bool = False, terminated: bool = False, **_: Any) -> None:
    """Keep the event of a task that was revoked, or has expired: the ledger would send it again. Called by Celery.

    Not if it was a mere copy of its message, and the task has ended or runs; *terminated*: it was this run.
    """
    if isinstance(sender, EventTask):
        reason = "expired" if expired else "revoked"
        end_in_main_process(
            sender.name, str(request.id), request.args, reason, f"its message was {reason}", unless_begun=not terminated
        )


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

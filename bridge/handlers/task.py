"""The Celery task of a handler, with the hooks that Celery calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, cast

from celery import Task
from celery.canvas import _chain
from celery.exceptions import Reject

from bridge.bus import handling, run_state
from bridge.errors import InvalidEvent, InvalidHandler
from bridge.events import EncodedEvent, Event
from bridge.handlers.delivery import delivery_of, mark_retry
from bridge.handlers.ends import end_in_main_process
from bridge.handlers.handler import registry
from bridge.handlers.leases import get_leases
from bridge.handlers.tracer import Tracer, execute, settling


class EventTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """Base class of the tasks that ``@on_event`` makes."""

    abstract = True
    Request = "bridge.handlers.request:EventRequest"

    #: A message is acknowledged when its task has ended, so that a killed worker loses no message.
    acks_late = True
    reject_on_worker_lost = True
    #: Celery sets it from ``task_retry_on_worker_lost``.
    retry_on_worker_lost: bool
    #: Celery would first write STARTED to the result backend, and drop the message if the backend does not answer.
    track_started = False

    #: Whether a copy of the message is skipped when the task has ended, and waits while it is running.
    idempotent = True
    #: ``Event``, or ``Event[Model]`` for a handler whose payload is validated.
    event_model: type[Event[Any]] = Event

    # Private names are mangled: a class of the user is mixed in, and its names are not known.
    __tracer: Tracer | None = None

    def __call__(self, event: Event[Any] | dict[str, Any]) -> Any:
        """Run the handler: from a worker with the event as JSON, or called as a plain function, as in a test."""
        request = self.request
        if request.called_directly or isinstance(event, Event):
            return _call(self, event, super().__call__)
        if request.is_eager:
            return _call(self, event, self.call_handler)
        return execute(self, request, event)

    @cached_property
    def call_handler(self) -> Callable[[Event[Any]], Any]:
        """The handler's function, called by ``__call__`` of the class that is mixed in, if it has its own.

        Celery leaves out its own ``__call__`` in workers, too: it would put the task on the stack of tasks again.
        """
        inherited = super().__call__
        own = getattr(inherited, "__func__", None) is not Task.__call__
        return inherited if own else self.run

    @property
    def __trace__(self) -> Tracer | None:
        """The function that runs this task in a worker. Celery sets it when the worker, or its pool process, starts."""
        return self.__tracer

    @__trace__.setter
    def __trace__(self, trace: Tracer | None) -> None:
        self.__tracer = None if trace is None else settling(self, trace)

    def apply_async(  # type: ignore[override]  # all options that Celery accepts are passed on
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Send the task, with the options of the decorator as defaults and a short text for its event."""
        handler = registry.get(self.name)
        if handler is not None:
            options = {**handler.send_options, **options}
        if args:
            options.setdefault("argsrepr", describe(args[0]))
        return super().apply_async(args, kwargs, **options)

    def retry(  # type: ignore[override]  # all options that Celery accepts are passed on
        self, args: Any = None, kwargs: Any = None, exc: Any = None, throw: bool = True, **options: Any
    ) -> Any:
        """Retry the task, as Celery does: the task goes on with the retry, even if this run ends well or fails.

        Arguments:
            throw: Raise ``Retry``, which ends this run. Otherwise the retry waits until this run has ended.

        Raises:
            Reject: The broker does not accept the retry. The message of this run goes back to its queue; Celery would
                drop it.
        """
        request = self.request
        if throw and not (request.called_directly or request.is_eager):  # these have no lease
            mark_retry(request, get_leases().token_of(str(request.id)))
        try:
            sent = super().retry(args, kwargs, exc, False, **options)
        except Reject as error:
            raise Reject(cast("Any", error).reason, requeue=True) from error
        run_state(request).retry = sent
        if throw:
            raise sent
        return sent

    def replace(self, sig: Any) -> Any:
        """Replace this task by another one, as Celery does.

        Raises:
            InvalidHandler: The other task is a handler. It would have the id of this task and be skipped as its copy.
        """
        last = sig.tasks[-1] if isinstance(sig, _chain) else sig
        if isinstance(self.app.tasks.get(str(last.task)), EventTask):
            raise InvalidHandler(
                f"{self.name} cannot be replaced by {last.task}, which is a handler too and would be skipped as a "
                "duplicate: publish an event for it, or call it as a function"
            )
        return super().replace(sig)


def _call(task: EventTask, event: Event[Any] | dict[str, Any], function: Callable[[Event[Any]], Any]) -> Any:
    """Call the handler as a function, without a lease and without a record of its end."""
    typed = event if isinstance(event, task.event_model) else task.event_model.model_validate(event)
    with handling(typed):
        return function(typed)


def end_revoked(sender: Any, request: Any = None, expired: bool = False, terminated: bool = False, **_: Any) -> None:
    """Keep the event of a revoked or expired task as a dead letter, or it would be redispatched. Called by Celery.

    Nothing happens if only a copy of the message was dropped: the task has ended, is running or was retried.
    *terminated* means that the running task itself was stopped.
    """
    if isinstance(sender, EventTask):
        reason, delivery = "expired" if expired else "revoked", delivery_of(vars(request))
        detail, task_id = f"its message was {reason}", str(request.id)
        end_in_main_process(sender.name, task_id, request.args, delivery, reason, detail, unless_begun=not terminated)


def describe(event: Any) -> str:
    """Return the arguments of a handler's task as Flower and the logs show them: without payload and secrets."""
    if type(event) is EncodedEvent:
        return f"({event!r},)"
    if isinstance(event, dict):
        try:
            event = Event.from_dict(event)
        except InvalidEvent:
            return "(<Event invalid>,)"
    return f"({event!r},)" if isinstance(event, Event) else "(...)"

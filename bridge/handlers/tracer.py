"""What surrounds Celery's execution of a handler's task, with all hooks and signals, in the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.task import Context
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Reject
from celery.states import FAILURE, REJECTED
from celery.utils.serialization import get_pickleable_exception

from bridge.errors import HandlerAborted
from bridge.handlers.ends import detail_of, traceback_of
from bridge.handlers.handler_task import HandlerTask
from bridge.handlers.interrupts import ends_worker, is_ordinary
from bridge.handlers.leases import get_leases
from bridge.handlers.process_span import tracing
from bridge.handlers.run import Run

#: Celery's function that runs a task: its arguments are the id, arguments, keyword arguments and request of the task.
Tracer = Callable[..., trace_ok_t]

#: The run of the task that is being traced, once Celery has called the task.
_run: ContextVar[list[Run] | None] = ContextVar("bridge_traced_run", default=None)


def execute(task: HandlerTask, request: Context, event: Any) -> Any:
    """Run a task as :meth:`Run.execute`, and remember its run until :func:`settling` has finished it."""
    run = Run(task, request, event)
    runs = _run.get()
    if runs is not None:
        runs.append(run)
    with tracing(task, request, event, get_leases().settings):
        return run.execute()


def settling(task: HandlerTask, trace: Tracer) -> Tracer:
    """Return a tracer that does what *trace* does and then settles the task.

    Celery lets users replace the methods that it calls when a task succeeds or fails, and skips them after some errors.
    This sees every outcome, before the message is acknowledged.
    """

    def traced(uuid: str, args: Any, kwargs: Any, request: Any = None) -> trace_ok_t:
        runs: list[Run] = []
        token = _run.set(runs)
        error: BaseException | None
        try:
            outcome = trace(uuid, args, kwargs, request)
            error = outcome.info.retval if outcome.info else None
            traceback = str(getattr(outcome.retval, "traceback", "")) if error else ""
        except BaseException as raised:
            if ends_worker(raised):
                raise
            # For example the result backend is not available. Not every pool acknowledges a message after that.
            error, traceback, outcome = raised, traceback_of(raised), _failed(raised)
        finally:
            _run.reset(token)
        run = runs[0] if runs else Run(task, Context(request, args=args, kwargs=kwargs), args[0] if args else None)
        try:
            run.finish(error, traceback)
        except Reject as rejected:
            return _failed(rejected)
        return outcome

    return traced


def _failed(error: BaseException) -> trace_ok_t:
    """Return what Celery's tracer returns of a task that has failed with *error*."""
    try:
        if is_ordinary(error):
            raise error
        raise HandlerAborted(detail_of(error)) from error
    except Exception as ordinary:  # noqa: BLE001  # raised above
        sendable = get_pickleable_exception(ordinary)
        info = ExceptionInfo((type(sendable), sendable, ordinary.__traceback__), internal=True)
        state = REJECTED if isinstance(ordinary, Reject) else FAILURE
        return trace_ok_t(info, TraceInfo(state, ordinary), 0.0, None)

"""The span of one run of a handler, see ``telemetry.tracing``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry

from bridge.bus import RunState, run_state
from bridge.config import BridgeSettings
from bridge.events import hops_of, replay_of
from bridge.handlers.handler_task import HandlerTask
from bridge.telemetry import Span, process_span

#: Any publisher can write larger numbers, which no tracing system stores.
_MAX_HOPS = 2**31


@contextmanager
def tracing(task: HandlerTask, request: Context, event: Any, settings: BridgeSettings) -> Iterator[None]:
    """Run a task within a span that says what has become of it.

    Arguments:
        event: The argument of the task: an event as JSON, unless the task was sent by hand.
    """
    fields = event if isinstance(event, dict) else {}
    metadata = fields.get("metadata") if isinstance(fields.get("metadata"), dict) else None
    known = {
        "messaging.consumer.group.name": settings.group,
        "bridge.handler": task.name,
        "bridge.attempt": (request.retries or 0) + 1,
        "bridge.hops": min(hops_of(metadata), _MAX_HOPS),
        "bridge.replay": replay_of(metadata),
    }
    with nullcontext(Span()) if settings.tracing == "off" else process_span(fields, known) as span:
        run_state(request).trace = span.context
        try:
            yield
        except BaseException as error:
            _settled(span, request, error)
            raise
        _settled(span, request, None)


def _settled(span: Span, request: Context, error: BaseException | None) -> None:
    state = run_state(request)
    announced, fields = state.announced
    span.set({"bridge.outcome": announced.removeprefix("task-") or _outcome(state, error)})
    if announced == "task-deadlettered" and isinstance(error, Ignore | Reject):  # another error is recorded itself
        span.fail(fields["reason"], fields["exception"])


def _outcome(state: RunState, error: BaseException | None) -> str:
    """Return what has become of a task that has no dead letter and is no duplicate, in the words of Celery's events."""
    if state.retry is not None or isinstance(error, Retry):
        return "retried"
    if error is None or (isinstance(error, Ignore) and state.event is not None):  # ignored by the handler itself
        return "succeeded"
    return "redelivered" if isinstance(error, Ignore | Reject) else "failed"

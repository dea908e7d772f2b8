"""Dead letters of handler tasks, from the process that runs a task and from the main process of its worker."""

from __future__ import annotations

import logging
import traceback as tracebacks
from typing import Any

from bridge.errors import InvalidEvent
from bridge.events import Event
from bridge.handlers.leases import get_leases
from bridge.storage import DeadLetter, Delivery, dead_letter_fields
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)


def dead_letter_of(
    handler: str, task_id: str, fields: Any, reason: str, detail: str, *, traceback: str = "", attempts: int = 1
) -> DeadLetter | None:
    """Return the dead letter with which a task ends, and log it; None, with another log line, without an event.

    Arguments:
        handler: Name of the task.
        fields: Argument of the task: its event as JSON, unless it was sent by hand.
        attempts: How often the task was tried.
    """
    group = get_leases().settings.group
    try:
        event = Event.from_dict(fields)
    except (InvalidEvent, AttributeError) as error:  # it may be of any JSON type
        extra = log_fields(
            Action.TASK_WITHOUT_EVENT_FAILED, task_id=task_id, handler=handler, group=group, reason=reason
        )
        text = "Task %s (%s) failed. It was sent without an event, so there is no dead letter: %s"
        log.error(text, task_id, handler, error, extra=extra)
        return None
    more = {"traceback": traceback, "attempts": attempts}
    dead_letter = DeadLetter.of_event(reason, detail, event, event.encode(), handler, task_id, **more)
    extra = dead_letter_fields(Action.DEAD_LETTER, dead_letter, group)
    text = "Task %s (%s) ended in a dead letter (%s), event %s (%s): %s"
    log.warning(text, task_id, handler, reason, event.id, event.type, detail.partition("\n")[0], extra=extra)
    return dead_letter


def end_in_main_process(
    handler: str, task_id: str, args: Any, delivery: Delivery, reason: str, detail: str, *, unless_begun: bool = False
) -> None:
    """End a task in a dead letter from the main process of a worker, which does not run it and must not be blocked.

    Arguments:
        handler: Name of the task.
        args: Arguments of the task.
        delivery: Its message.
        unless_begun: Do nothing if the task has ended, is running or was retried.
    """
    fields, attempts = args[0] if args else None, delivery.retries + 1
    dead_letter = dead_letter_of(handler, task_id, fields, reason, detail, attempts=attempts)
    if dead_letter is not None:
        get_leases().end_in_background(task_id, dead_letter, unless_begun=delivery if unless_begun else None)


def detail_of(error: BaseException) -> str:
    """Return the class and the text of an error of user code, whose ``__str__`` may fail as well."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except Exception:  # noqa: BLE001  # of user code
        return f"{name}: (no text: its __str__ failed)"


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an error, with its causes."""
    return "".join(tracebacks.format_exception(error))

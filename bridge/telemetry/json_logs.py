"""Log lines as JSON, one object a line, for log collectors: ``bridge_log_format = "json"``.

Celery creates the log handlers of the worker, ``bus subscribe`` and beat, and sends a signal when it has; then they get
a JSON formatter. A handler that the application created itself keeps its formatter, as with
``worker_hijack_root_logger = False``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from celery import Celery, signals
from celery._state import get_current_task
from celery.utils.log import ColorFormatter, get_multiprocessing_logger

from bridge.events import Event
from bridge.telemetry.tracing import current_ids


class _Context:
    """How log lines find the event that is being handled. :func:`install` sets it, since this part is below the bus."""

    current_event: Callable[[], Event | None] = staticmethod(lambda: None)


def install(app: Celery, wanted: Callable[[Celery], bool], current_event: Callable[[], Event | None]) -> None:
    """Format the log lines of processes that run *app* as JSON. If called for several apps, the last call wins.

    Arguments:
        wanted: Returns whether an app's settings require JSON. Called when Celery has set up its log handlers.
        current_event: Returns the event that the calling code handles, if any; its id and type are in each line.
    """
    _Context.current_event = staticmethod(current_event)

    def on_loggers(logger: logging.Logger, **_: Any) -> None:
        if wanted(app):
            for one in (logger, get_multiprocessing_logger()):
                _use_json(one)

    def on_worker(instance: Any, **_: Any) -> None:
        if wanted(instance.app):
            instance.quiet = True  # no banner, since many collectors also read standard output

    receivers: list[tuple[Any, Any]] = [
        (signals.after_setup_logger, on_loggers),
        (signals.after_setup_task_logger, on_loggers),
        (signals.celeryd_init, on_worker),
    ]
    for signal, receiver in receivers:
        signal.disconnect(dispatch_uid=__name__)
        signal.connect(receiver, weak=False, dispatch_uid=__name__)


def _use_json(logger: logging.Logger | None) -> None:
    for handler in logger.handlers if logger is not None else ():
        if isinstance(handler.formatter, ColorFormatter):  # Celery's own
            handler.setFormatter(formatter())


@cache
def formatter() -> logging.Formatter:
    """Return the formatter of JSON lines; applications may use it in their own log handlers."""
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415  # an optional dependency

    class Lines(JsonFormatter):
        def format(self, record: logging.LogRecord) -> str:
            try:
                return super().format(record)
            except Exception as error:  # noqa: BLE001  # whatever was logged, the line must not be missing, and must be JSON
                place = f"{record.pathname}:{record.lineno}"
                text = f"a line logged at {place} cannot be formatted: {type(error).__name__}: {error}"
                return json.dumps(_fixed(record) | {"message": text})

        def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
            fixed = _fixed(record)
            log_data.update(fixed | _context(record))
            super().add_fields(log_data, record, message_dict)
            if _of_celery(record):
                log_data.pop("data", None)  # everything about a task, with its arguments and its result
            log_data.update(fixed)

    return Lines(
        rename_fields={"exc_info": "exception", "stack_info": "stack"},
        reserved_attrs=[*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"],
        json_serializer=partial(json.dumps, allow_nan=False),
    )


def _of_celery(record: logging.LogRecord) -> bool:
    return record.name.startswith("celery.")


def _fixed(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields that every line has."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname,
        "logger": record.name,
        "process": record.processName,
        "pid": record.process,
        "message": getattr(record, "message", ""),
    }


def _context(record: logging.LogRecord) -> dict[str, Any]:
    """Return the trace, the task and the event that are being handled, unless the line itself names others."""
    found: dict[str, Any] = {name: value for name, value in current_ids().items() if not hasattr(record, name)}
    data = getattr(record, "data", None)
    if _of_celery(record) and isinstance(data, dict) and {"id", "name"} <= data.keys():
        return found | {"task_id": data["id"], "task_name": data["name"]}
    task = get_current_task()
    if task is not None and task.request.id and not hasattr(record, "task_id"):
        found |= {"task_id": task.request.id, "task_name": task.name}
    event = _Context.current_event()
    if event is not None and not hasattr(record, "event_id"):
        found |= {"event_id": event.id, "event_type": event.type}
    return found

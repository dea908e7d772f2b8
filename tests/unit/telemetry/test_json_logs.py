"""Log lines as JSON: their content, which handlers write them, and which lines Celery's loggers produce."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.log import Logging, TaskFormatter

from bridge import Event, install
from bridge.bus.causation import current_event, handling
from bridge.telemetry import json_logs
from bridge.telemetry.logs import Action, log_fields
from tests.support.spans import SPAN_ID, TRACE_ID

SECRET = "s3cret-payload"


@pytest.fixture
def line() -> Callable[..., dict[str, Any]]:
    """Format one record; the result must be standard JSON."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not valid JSON")

    def write(message: object = "text", *args: object, name: str = "user.code", **more: Any) -> dict[str, Any]:
        record = logging.getLogger(name).makeRecord(name, logging.INFO, "file.py", 7, message, args, None, **more)  # type: ignore[arg-type]
        text = json_logs.formatter().format(record)
        assert "\n" not in text
        written: dict[str, Any] = json.loads(text, parse_constant=refuse)
        return written

    return write


def test_a_line_is_an_object(line: Callable[..., dict[str, Any]]) -> None:
    """A line begins with UTC time, level, logger, process and message; the action and the fields follow."""
    written = line("dead %s\nlétter", "or\ud800", extra=log_fields(Action.DEAD_LETTER, event_id="e1", count=3))
    assert list(written) == ["time", "level", "logger", "process", "pid", "message", "action", "event_id", "count"]
    moment = datetime.fromisoformat(written["time"])
    assert written["time"].endswith("Z")
    assert abs(moment.timestamp() - time.time()) < 5
    assert written["message"] == "dead or\ud800\nlétter"
    assert (written["level"], written["logger"], written["action"]) == ("INFO", "user.code", "dead_letter")


def test_fields_of_users_are_kept_but_not_in_the_place_of_ours(line: Callable[..., dict[str, Any]]) -> None:
    """``extra`` of user code is in the line, but cannot replace fields such as the time and the level."""
    written = line("x", extra={"order": 7, "data": [1], "level": "none", "time": 1, "odd": {1, 2}})
    assert (written["order"], written["data"], written["level"]) == (7, [1], "INFO")
    assert written["time"] != 1
    assert line({"key": "value"})["key"] == "value"


@pytest.mark.parametrize(
    "record",
    [
        ("%d numbers", "no number"),
        ("x", {"extra": {"odd": {(1, 2): 3}}}),
        ("x", {"extra": {"odd": float("nan")}}),
        ("x", {"extra": {"odd": object()}}),
    ],
)
def test_what_cannot_be_written_is_a_line_nevertheless(line: Callable[..., dict[str, Any]], record: Any) -> None:
    """A log call with wrong arguments or values that JSON cannot represent still writes a complete line."""
    message, rest = record
    written = line(message, **rest) if isinstance(rest, dict) else line(message, rest)
    assert {"time", "level", "logger", "message"} <= written.keys()


def test_an_exception_is_text_in_the_line(line: Callable[..., dict[str, Any]]) -> None:
    """The traceback is a single text field."""
    try:
        raise ValueError("as intended")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", 40, "f", 1, "failed", (), sys.exc_info())
    written = json.loads(json_logs.formatter().format(record))
    assert written["exception"].startswith("Traceback")
    assert written["exception"].endswith("ValueError: as intended")
    assert "exc_info" not in written


def test_a_line_written_in_a_handler_names_its_event(line: Callable[..., dict[str, Any]]) -> None:
    """Lines that a handler logs name its event; a line about another event keeps that event's id."""
    json_logs.install(Celery(set_as_current=False), lambda _: False, current_event)
    with handling(Event(type="a.b", id="e1", payload=SECRET)):
        written = line("x")
        other = line("x", extra=log_fields(Action.OUTAGE, event_id="e2"))
    assert (written["event_id"], written["event_type"]) == ("e1", "a.b")
    assert (other["event_id"], "event_type" in other) == ("e2", False)
    assert SECRET not in str(written)


def test_a_line_written_in_a_span_has_its_ids(line: Callable[..., dict[str, Any]]) -> None:
    """Lines that are logged within a span of OpenTelemetry, Celery's own ones, too, have the ids of trace and span."""
    from opentelemetry import trace

    ids = {"trace_id": TRACE_ID, "span_id": SPAN_ID}
    span = trace.NonRecordingSpan(trace.SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), is_remote=False))
    with trace.use_span(span):
        data = {"id": "t1", "name": "tasks.x"}
        for written in (line("x"), line("x", name="celery.app.trace", extra={"data": data})):
            assert ids.items() <= written.items()
        assert line("x", extra={"trace_id": "of the user"})["trace_id"] == "of the user"
    assert not ids.keys() & line("x").keys()


def test_celerys_own_lines_name_the_task_and_not_its_arguments(line: Callable[..., dict[str, Any]]) -> None:
    """Celery attaches all data of a task to its lines; only the id and the name are written."""
    data = {"id": "t1", "name": "tasks.x", "args": SECRET, "return_value": SECRET}
    written = line("x", name="celery.app.trace", extra={"data": data})
    assert (written["task_id"], written["task_name"]) == ("t1", "tasks.x")
    assert SECRET not in str(written)


# Formatters of real loggers


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[logging.Handler]]]:
    """Set up logging as a Celery program does; return the handlers of the root logger and of the task logger."""
    monkeypatch.setattr(Logging, "_setup", False)
    loggers = [logging.getLogger(name) for name in ("celery", "celery.task", "celery.redirected")]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    monkeypatch.setattr(logging.Logger, "root", logging.root)
    for logger in loggers:
        logger.handlers = []

    def start(app: Celery, *own: logging.Handler) -> list[logging.Handler]:
        logging.root.handlers = list(own)
        install(app)
        app.log.setup_logging_subsystem(loglevel="INFO")
        handlers = logging.root.handlers + logging.getLogger("celery.task").handlers
        return [handler for handler in handlers if not isinstance(handler, logging.NullHandler)]

    yield start
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate
    for signal in (signals.after_setup_logger, signals.after_setup_task_logger, signals.celeryd_init):
        signal.disconnect(dispatch_uid=json_logs.__name__)


def is_json(handler: logging.Handler) -> bool:
    return handler.formatter is json_logs.formatter()


def test_text_stays_as_celery_writes_it(set_up: Callable[..., list[logging.Handler]], app: Celery) -> None:
    """Without the setting all formatters are unchanged."""
    root, task = set_up(app)
    assert not is_json(root)
    assert isinstance(task.formatter, TaskFormatter)


def test_json_is_for_the_handlers_of_celery(
    set_up: Callable[..., list[logging.Handler]], app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All handlers that Celery creates write JSON."""
    monkeypatch.setenv("BRIDGE_LOG_FORMAT", "json")
    assert [is_json(handler) for handler in set_up(app)] == [True, True]


def test_a_handler_of_the_application_keeps_its_format(
    set_up: Callable[..., list[logging.Handler]], app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``worker_hijack_root_logger = False`` the handler of the application keeps its format."""
    monkeypatch.setenv("BRIDGE_LOG_FORMAT", "json")
    app.conf.worker_hijack_root_logger = False
    own = logging.StreamHandler()
    own.setFormatter(logging.Formatter("%(message)s"))
    root, task = set_up(app, own)
    assert (root is own, is_json(root), is_json(task)) == (True, False, True)


@pytest.mark.parametrize("name", ["BRIDGE_LOG_FORMAT", "BRIDGE_LOG_FROMAT"])
def test_wrong_settings_are_for_others_to_report(
    set_up: Callable[..., list[logging.Handler]], app: Celery, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Invalid settings do not prevent the set-up of logging; other parts report them."""
    monkeypatch.setenv(name, "yaml")
    assert [is_json(handler) for handler in set_up(app)] == [False, False]

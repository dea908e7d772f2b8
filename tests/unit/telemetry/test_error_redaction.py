"""Errors of handlers and log lines do not quote sensitive values."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject, Retry
from pydantic import BaseModel
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, InvalidEvent, LocalBus
from bridge.broker.outbox import Outbox
from bridge.errors import RedactedError
from bridge.events.encoded import EncodedEvent
from bridge.events.redaction import REDACTED, Redaction
from bridge.handlers.handler import registry
from bridge.storage import Storage
from bridge.storage.in_flight import InFlightTask, Overdue
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.maintenance.rescuer import Rescuer, _Unrecoverable
from bridge.subscriber.members import Members
from bridge.telemetry.counters import Counters
from bridge.telemetry.error_redaction import redact_worker_logs, redacting_errors
from tests.support.sensitive import PAYLOAD, SECRET, SENSITIVE


class Model(BaseModel):
    email: int


def nested() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise RuntimeError(1, SECRET, {"user": SECRET}) from error


def noted() -> None:
    error = ValueError("plain")
    error.add_note(f"of {SECRET}")
    raise error


def retried() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        raise Retry(f"for {SECRET}", error, 5) from error


def raised(error: BaseException) -> None:
    raise error


ERRORS: dict[str, tuple[Any, type[BaseException]]] = {
    "arguments": (nested, RuntimeError),
    "notes": (noted, ValueError),
    "a model": (lambda: Model.model_validate({"email": SECRET}), RedactedError),
    "attributes": (lambda: raised(FileNotFoundError(2, "no file", SECRET)), RedactedError),
    "a group": (lambda: raised(ExceptionGroup("all", [ValueError(SECRET)])), ExceptionGroup),
    "a group that cannot change": (lambda: raised(ExceptionGroup("all", [OSError(2, "no", SECRET)])), RedactedError),
    "an exit": (lambda: raised(SystemExit(f"bye {SECRET}")), SystemExit),
    "a retry": (retried, Retry),
    "a rejection": (lambda: raised(Reject(SECRET, requeue=False)), Reject),
    "an event": (lambda: raised(InvalidEvent("payload", "user", SECRET)), InvalidEvent),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_that_quote_what_is_sensitive(name: str) -> None:
    """Errors keep their type, if possible, and their traceback; none of their texts quotes a sensitive value."""
    fail, kind = ERRORS[name]
    with pytest.raises(kind) as caught, redacting_errors(Redaction(SENSITIVE), {"payload": PAYLOAD}):
        fail()
    error: Any = caught.value
    text = (
        "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + repr(getattr(error, "exc", ""))
    )
    assert "lovelace" not in text.lower()
    assert REDACTED in text or "sub-exception" in text
    assert __file__ in text
    if kind is RedactedError:
        assert str(error).partition(":")[0] in ("ValidationError", "FileNotFoundError", "ExceptionGroup")


def test_other_errors_stay_as_they_are() -> None:
    """An error that quotes no sensitive value stays the same object, with its arguments and cause."""
    error = ValueError("harmless", [1])
    error.__cause__ = KeyError("also")
    for payload in (PAYLOAD, {}):
        with (
            pytest.raises(ValueError, match="harmless") as caught,
            redacting_errors(Redaction(SENSITIVE), {"payload": payload}),
        ):
            raise error
        assert caught.value is error
        assert (error.args, str(error.__cause__)) == (("harmless", [1]), "'also'")


def test_handlers_of_a_bus(settings: BridgeSettings, caplog) -> None:
    """Errors of local handlers are logged without sensitive values."""

    def handler(event: Event) -> None:
        raise ValueError(event.payload["user"]["email"])

    with EventBus(settings.model_copy(update={"redact_paths": SENSITIVE, "enable_pubsub": False})) as bus:
        bus.subscribe("*", handler)
        bus.publish("a.b", PAYLOAD)
    assert "ValueError: [redacted]" in caplog.text
    assert "lovelace" not in caplog.text
    local = LocalBus()
    local.subscribe("*", handler)
    local.publish("a.b", PAYLOAD)
    assert f"ValueError: {SECRET}" in caplog.text


def test_a_task_given_up(app: Celery, settings: BridgeSettings, client: Redis, caplog) -> None:
    """The log line about a task that cannot be sent again quotes no sensitive value."""
    discreet = settings.model_copy(update={"redact_paths": SENSITIVE})
    storage, counters = Storage(client, discreet), Counters()
    in_flight = InFlightTask("t.all", "e1", "1-1", "celery")
    storage.ledger.acknowledge_sent([], [in_flight.entry("task-e1")])
    writer, members = DeadLetterWriter(storage, counters), Members(storage, registry, "one")
    recovery = Rescuer(storage, Outbox(app, discreet), registry, writer, counters, members)
    event = Event(type="a.b", id="e1", payload=PAYLOAD)
    why = _Unrecoverable("message_failed", f"KeyError: {SECRET}", EncodedEvent.read(event.encode()))
    recovery._give_up(Overdue("task-e1", in_flight, left_queue=False, lane_moves=False, event_left_ms=0), why)
    assert "given up, with a dead letter (message_failed), event e1 (a.b): KeyError: [redacted]" in caplog.text
    assert "lovelace" not in caplog.text


def test_celerys_own_lines() -> None:
    """Celery's log lines lose the message body and keep its size; lines without a body are unchanged."""
    redact_worker_logs([])
    redact_worker_logs([])
    for name, args, shown in (
        ("celery.pool", ("run", f"('{SECRET}',)", "{}"), "run [redacted] [redacted]"),
        ("celery.worker.consumer.consumer", (KeyError("x"), f'[["{SECRET}"]]\n (44b)', {}), "'x' [redacted] (44b) {}"),
        ("celery.worker.consumer.consumer", ("harmless (b)", 1, None), "harmless (b) 1 None"),
    ):
        record = logging.LogRecord(name, logging.ERROR, "", 0, "%s %s %s", args, None)
        assert len(logging.getLogger(name).filters) == 1
        assert logging.getLogger(name).filter(record)
        assert record.getMessage() == shown

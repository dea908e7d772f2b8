"""Spans of a program that is not traced, and what the traced ones need that does not import OpenTelemetry."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bridge.events import TraceContext
from bridge.telemetry.logs import Action, LogThrottle, log_fields

log = logging.getLogger(__name__)

_throttle = LogThrottle(math.inf)  # once in each process


class Span:
    """A span around an operation. This one belongs to no trace, and does nothing."""

    #: What a program needs that continues the trace after this span; None: there is no trace.
    context: TraceContext | None = None

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add *attributes*, except those that are None."""

    def fail(self, error_type: str, detail: object) -> None:
        """Note that the operation has failed, with the class of the error, and the error or its text."""


def is_opentelemetry(receiver: Any) -> bool:
    """Return whether this receiver of a Celery signal belongs to OpenTelemetry's instrumentation of Celery."""
    return getattr(receiver, "__module__", None) == "opentelemetry.instrumentation.celery"


@contextmanager
def harmless() -> Iterator[None]:
    """Log an error of OpenTelemetry, or of what the user has added to it, instead of raising it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # tracing must not stop what it traces
        log_failure(error)


def log_failure(error: Exception) -> None:
    """Log an error of OpenTelemetry, the first of its kind."""
    if _throttle.allow(type(error).__name__):
        extra = log_fields(Action.TRACING_FAILED, reason=type(error).__name__)
        log.warning("OpenTelemetry has failed, so spans or trace contexts may be missing: %r", error, extra=extra)

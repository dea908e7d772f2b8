"""Traces by OpenTelemetry, in programs that use it; in others nothing here has an effect.

Names and attributes of spans follow the semantic conventions for messaging. A span has ids, names and numbers of an
event, never its payload. Errors of OpenTelemetry are logged once and do not reach the caller.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

from celery.exceptions import TaskPredicate

from bridge.events import Event, TraceContext, parent_of, trace_context_of
from bridge.telemetry.counters import TypeLabels
from bridge.telemetry.span import Span, harmless, log_failure

#: Longest value of an attribute: any publisher can choose the ids and types of its events.
_MAX_CHARS = 200

_labels = TypeLabels()


def publish_span(event: Event | None) -> AbstractContextManager[Span]:
    """Return a span around the publication of *event*; None: of several."""
    otel = _otel()
    if otel is None:
        return nullcontext(Span())
    attributes = _attributes("publish", "send")
    if event is None:
        return _new(otel, "publish", "PRODUCER", attributes, ())
    attributes |= _attributes_of(event.id, event.type, event.correlation_id)
    name = f"publish {_labels.label(event.type)}"
    return _new(otel, name, "PRODUCER", attributes, (trace_context_of(event.metadata),))


@contextmanager
def process_span(fields: Mapping[str, Any], attributes: Mapping[str, Any]) -> Iterator[Span]:
    """Run a handler in a span: in that of OpenTelemetry's instrumentation of Celery, if it traces this task.

    Either is linked to the span that has published the event. A new span is also its child, except in a replay.

    Arguments:
        fields: The event as JSON types, which may be invalid.
        attributes: Further attributes.
    """
    otel = _otel()
    if otel is None:
        yield Span()
        return
    event_type, metadata = _short(fields.get("type")), fields.get("metadata")
    attributes = {
        **_attributes("process", "process"),
        **_attributes_of(fields.get("id"), event_type, fields.get("correlationId")),
        **attributes,
    }
    # OpenTelemetry's instrumentation of Celery later replaces it by the id of the task.
    attributes["bridge.event_id"] = attributes["messaging.message.id"]
    creation, celerys = trace_context_of(metadata), None
    with harmless():
        celerys = otel.celerys_span()
    if celerys is not None:
        span = otel.OpenTelemetrySpan(celerys)
        span.set(attributes)
        with harmless():
            otel.link(celerys, creation)
        try:
            yield span
        except BaseException as error:
            if not isinstance(error, TaskPredicate):  # the instrumentation records the error itself
                span.set({"error.type": type(error).__qualname__})
            raise
        return
    ambient = None
    with harmless():
        ambient = otel.current()
    name = f"process {_labels.label(event_type)}"
    with _new(otel, name, "CONSUMER", attributes, (creation, ambient), parent_of(metadata)) as span:
        yield span


def continuing(trace: TraceContext | None) -> AbstractContextManager[None]:
    """Return a context manager in which spans of the program continue *trace*, unless a span is current."""
    # Also without an SDK of the whole program: its parts, such as an instrumentation, may have others.
    api = sys.modules.get("opentelemetry.trace") if trace is not None else None
    otel = None if api is None else _imported()
    continued: AbstractContextManager[None] = nullcontext() if otel is None else otel.continued(trace)
    return continued


def current_ids() -> dict[str, str]:
    """Return ``trace_id`` and ``span_id`` of the current span; nothing without one."""
    otel, ids = _otel(), {}
    if otel is not None:
        with harmless():
            ids = otel.current_ids()
    return ids


def _new(otel: ModuleType, name: str, kind: str, *arguments: Any) -> AbstractContextManager[Span]:
    span: AbstractContextManager[Span] = otel.new_span(name, getattr(otel, kind), *arguments)
    return span


def _attributes(name: str, operation_type: str) -> dict[str, Any]:
    operation = {"messaging.operation.name": name, "messaging.operation.type": operation_type}
    return {"messaging.system": "redis", **operation}


def _attributes_of(event_id: Any, event_type: str, correlation_id: Any) -> dict[str, Any]:
    label = _labels.label(event_type)
    return {
        "messaging.destination.name": event_type,
        "messaging.destination.template": None if label == event_type else label,
        "messaging.message.id": _short(event_id),
        "messaging.message.conversation_id": _short(correlation_id) if correlation_id else None,
    }


def _short(value: Any) -> str:
    # An exporter would lose all spans of its batch with half a surrogate pair.
    return str(value)[:_MAX_CHARS].encode(errors="replace").decode()


def _otel() -> ModuleType | None:
    """Return the module that uses OpenTelemetry; None if the program does not use it."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    try:  # not harmless(), which would take half as long as all the rest: this is part of every publication
        return _imported() if _is_in_use(api) else None
    except Exception as error:  # noqa: BLE001
        log_failure(error)
        return None


def _is_in_use(api: ModuleType) -> bool:
    """Return whether there is an SDK or, without one, at least a trace to continue.

    The import alone means nothing: redis-py imports OpenTelemetry wherever it is installed.
    """
    if not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return True
    return bool(api.get_current_span().get_span_context().is_valid)


@cache
def _imported() -> ModuleType | None:
    with harmless():
        from bridge.telemetry import otel  # noqa: PLC0415  # it is optional

        return otel
    return None

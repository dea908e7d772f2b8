"""Spans of OpenTelemetry. Imported only in programs that have imported it themselves, since it is optional.

Only its API is used: whether and where spans are recorded is decided by the SDK that the program sets up. The context
goes by W3C Trace Context, independent of the propagators of the program, so no baggage gets into an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery.exceptions import TaskPredicate
from celery.signals import task_prerun
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bridge.events import TraceContext, trace_context_of
from bridge.telemetry.span import Span, harmless, is_opentelemetry

PRODUCER, CONSUMER = trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER

_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("bridge", schema_url="https://opentelemetry.io/schemas/1.44.0")


class OpenTelemetrySpan(Span):
    """A span that may be recorded."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        with harmless():
            headers: dict[str, str] = {}
            _propagator.inject(headers, trace.set_span_in_context(span, contexts.Context()))
            self.context = trace_context_of(headers)

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add *attributes*, except those that are None."""
        with harmless():
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, error_type: str, detail: object) -> None:
        """Note that the operation has failed, with the class of the error, and the error or its text."""
        self.set({"error.type": error_type})
        with harmless():
            self._span.set_status(trace.StatusCode.ERROR)
            self._span.set_status(trace.StatusCode.ERROR, str(detail))  # it may fail: an error of user code


@contextmanager
def new_span(
    name: str,
    kind: trace.SpanKind,
    attributes: Mapping[str, Any],
    links: Iterable[TraceContext | None],
    *parent: TraceContext | None,
) -> Iterator[Span]:
    """Make a new span the current one within the block. An error that leaves the block is recorded in it.

    Arguments:
        parent: Of the span; None: it begins a trace. Without this argument it is the current span.
    """
    span: trace.Span | None = None
    with harmless():
        under = _context_of(parent[0]) if parent else None
        given = {name: value for name, value in attributes.items() if value is not None}
        span = _tracer.start_span(name, under, kind, given, [trace.Link(_span_context(one)) for one in links if one])
    if span is None:
        yield Span()
        return
    token = contexts.attach(trace.set_span_in_context(span))
    result = OpenTelemetrySpan(span)
    try:
        yield result
    except BaseException as error:
        if not isinstance(error, TaskPredicate):  # Celery's Ignore, Reject and Retry
            with harmless():
                span.record_exception(error)
            result.fail(type(error).__qualname__, error)
        raise
    finally:
        contexts.detach(token)
        with harmless():
            span.end()


def celerys_span() -> trace.Span | None:
    """Return the span in which OpenTelemetry's instrumentation of Celery runs the current task; None without it."""
    if any(is_opentelemetry(receiver) for _, receiver in task_prerun.receivers or ()):
        span = trace.get_current_span()
        if span.get_span_context().is_valid:
            return span
    return None


def link(span: trace.Span, to: TraceContext | None) -> None:
    """Link *span* to the span that has published the event, unless it is linked already."""
    if to is not None and span.is_recording():
        context = _span_context(to)
        if context not in [one.context for one in getattr(span, "links", ())]:
            span.add_link(context)


def current() -> TraceContext | None:
    """Return the context of the current span; None without one."""
    return OpenTelemetrySpan(trace.get_current_span()).context


@contextmanager
def continued(parent: TraceContext) -> Iterator[None]:
    """Make the span that *parent* names the current one within the block, unless there is one."""
    token = None
    with harmless():
        if not trace.get_current_span().get_span_context().is_valid:
            token = contexts.attach(_context_of(parent))
    try:
        yield
    finally:
        if token is not None:
            contexts.detach(token)


def current_ids() -> dict[str, str]:
    """Return the ids of the current trace and span, as log lines have them; nothing without a current span."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(span.trace_id), "span_id": trace.format_span_id(span.span_id)}


def _context_of(parent: TraceContext | None) -> contexts.Context:
    return _propagator.extract(parent.headers if parent else {}, contexts.Context())


def _span_context(parent: TraceContext) -> trace.SpanContext:
    return trace.get_current_span(_context_of(parent)).get_span_context()

"""Tracing of task messages by OpenTelemetry's instrumentation of Celery, which receives the publish signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from bridge import BridgeSettings, Event, EventBus
from bridge.broker.outbox import Outbox
from bridge.events.encoded import EncodedEvent
from tests.handlers import HANDLERS
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually


@contextmanager
def instrumented() -> Iterator[InMemorySpanExporter]:
    """Trace Celery during the block; yield the exporter that collects the spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    CeleryInstrumentor().instrument(tracer_provider=provider)
    try:
        yield exporter
    finally:
        CeleryInstrumentor().uninstrument()
        provider.shutdown()


def named_by(traceparent: str) -> tuple[str, ...]:
    """Return the ids of trace and span that a message names as those of its sender."""
    version, trace_id, span_id, _ = traceparent.split("-")
    assert version == "00"
    return trace_id, span_id


def names_of(span: ReadableSpan) -> tuple[str, ...]:
    context = span.get_span_context()
    assert context is not None
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


def test_messages_carry_their_trace(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues
) -> None:
    """While tracing is on, each message that a subscriber sends has a separate span, which its header names."""
    register_handlers("t.all", "t.glob")
    with instrumented() as exporter, EventBus(settings) as bus:
        start_subscriber()
        bus.publish_many([Event(type="dream.made", id=f"n{number}") for number in range(20)])
        eventually(lambda: queues.length() == 40, "all messages are queued")
        spans = eventually(lambda: len(found := exporter.get_finished_spans()) == 40 and found, "all spans have ended")
    assert {span.kind for span in spans} == {SpanKind.PRODUCER}
    assert sorted(span.name for span in spans) == ["apply_async/t.all"] * 20 + ["apply_async/t.glob"] * 20
    sent = {span.attributes["messaging.message.id"]: names_of(span) for span in spans if span.attributes}
    headers = [message["headers"] for message in queues.messages()]
    assert {header["id"]: named_by(header["traceparent"]) for header in headers} == sent
    assert len(set(sent.values())) == 40


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "before it starts"])
def test_tracing_begins_and_ends(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues, running: bool
) -> None:
    """A subscriber follows when tracing is switched on or off, and sends every event exactly once."""
    register_handlers("t.all")
    with EventBus(settings) as bus:
        if running:
            start_subscriber()
            bus.publish("a.b", id="before")
            eventually(lambda: queues.length() == 1, "the message is sent")
        with instrumented() as exporter:
            if not running:
                start_subscriber()
            bus.publish("a.b", id="during")
            eventually(lambda: queues.tasks()["t.all a.b during"] and exporter.get_finished_spans(), "it is sent")
        bus.publish("a.b", id="after")
        eventually(lambda: queues.tasks()["t.all a.b after"], "the message is sent")
    headers = [message["headers"] for message in queues.messages()]
    traced = {header["argsrepr"][12:-3]: "traceparent" in header for header in headers}
    assert traced == ({"before": False} if running else {}) | {"during": True, "after": False}
    assert set(queues.tasks().values()) == {1}


def test_messages_are_stamped_without_tracing(app: Celery, settings: BridgeSettings) -> None:
    """Celery creates the messages only while they are traced."""
    app.finalize()
    outbox = Outbox(app, settings)
    stored = EncodedEvent.read(Event(type="a.b", id="e").encode())

    def stamped() -> bool:
        outbox.refresh()
        return bool(outbox.prepare(HANDLERS["t.all"], stored, b"1-1").stamped)

    assert stamped()
    with instrumented():
        assert not stamped()
    assert stamped()
    outbox.close()

"""Trace contexts in task messages, with and without OpenTelemetry's instrumentation of Celery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from bridge import BridgeSettings, Event, EventBus
from bridge.broker.outbox import Outbox
from bridge.events.encoded import EncodedEvent
from tests.handlers import HANDLERS
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT
from tests.support.waiting import eventually

STATE = 'vendor=a "quoted" \\ value,other=100%'
CONTEXTS = {
    "none": {},
    "parent": {"traceparent": TRACEPARENT},
    "parent and state": {"traceparent": TRACEPARENT, "tracestate": STATE},
}


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


def stored(metadata: dict[str, Any] | None, event_id: str = "e") -> EncodedEvent:
    return EncodedEvent.read(Event(type="billing.paid", id=event_id, timestamp=1, metadata=metadata).encode())


def without_volatile(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without its body, and without what differs each time."""
    left_out = {"delivery_tag", "reply_to", "bridge_sent_ms", "eta", "expires"}
    parts = {name: message[name] for name in ("headers", "properties")}
    return {
        part: {name: value for name, value in fields.items() if name not in left_out} for part, fields in parts.items()
    }


@pytest.mark.parametrize("tracing", [nullcontext, instrumented], ids=["alone", "instrumented"])
@pytest.mark.parametrize("way", ["stamped", "published", "made by Celery"])
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("name", ["t.plain", "t.delayed", "t.expiring"])
def test_messages_have_the_context_of_their_event(
    outbox: Outbox, queues: Queues, name: str, context: dict[str, str], way: str, tracing: Callable[[], Any]
) -> None:
    """The context becomes headers, word for word; otherwise the message equals that of an event without a context."""

    def sent(metadata: dict[str, Any]) -> dict[str, Any]:
        outbox.refresh()
        message = outbox.prepare(HANDLERS[name], stored(metadata), b"1-1")
        assert message.stamped
        if way != "stamped":
            template = message.route.template
            content = template.content(message.event) if template and way == "published" else None
            message = message._replace(stamped=b"", content=content)
        outbox.send([message])
        (found,) = queues.messages()
        queues.client.delete(f"broker:{queues.prefix}celery")
        return without_volatile(found)

    plain = sent({"other": 1})
    with tracing() as exporter:
        traced = sent({"other": 1, **context})
        spans = exporter.get_finished_spans() if exporter else ()
    headers = {header: traced["headers"].pop(header, None) for header in ("traceparent", "tracestate", "baggage")}
    assert traced == plain
    if not (spans and way == "made by Celery"):
        assert spans == ()
        assert headers == {"traceparent": None, "tracestate": None, "baggage": None} | context
    elif context:  # the instrumentation adds a span between the event and the task
        (span,) = spans
        assert span.parent is not None
        assert span.context is not None
        assert (format_trace_id(span.context.trace_id), format_span_id(span.parent.span_id)) == (TRACE_ID, SPAN_ID)
        assert headers["traceparent"] == f"00-{TRACE_ID}-{format_span_id(span.context.span_id)}-01"


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "before it starts"])
def test_dispatch_is_not_changed_by_the_instrumentation(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues, running: bool
) -> None:
    """A subscriber sends every event exactly once, without a span for it, when tracing is switched on or off."""
    register_handlers("t.all")
    with EventBus(settings) as bus:
        if running:
            start_subscriber()
            bus.publish("a.b", id="before")
            eventually(lambda: queues.length() == 1, "the message is sent")
        with instrumented() as exporter:
            if not running:
                start_subscriber()
            bus.publish("a.b", id="during", metadata={"traceparent": TRACEPARENT})
            eventually(lambda: queues.tasks()["t.all a.b during"], "it is sent")
        bus.publish("a.b", id="after")
        eventually(lambda: queues.tasks()["t.all a.b after"], "the message is sent")
    assert exporter.get_finished_spans() == ()
    headers = [message["headers"] for message in queues.messages()]
    traced = {header["argsrepr"][12:-3]: header.get("traceparent") for header in headers}
    assert traced == ({"before": None} if running else {}) | {"during": TRACEPARENT, "after": None}
    assert set(queues.tasks().values()) == {1}


def test_a_replay_begins_another_trace(outbox: Outbox) -> None:
    """Messages of a replay have no context, so its tasks do not prolong a trace that has ended long ago."""
    replayed = stored({"traceparent": TRACEPARENT, "replay": {"name": "r", "at": 1}})
    assert b"traceparent" not in outbox.prepare(HANDLERS["t.plain"], replayed, b"1-1").stamped


def test_tracing_can_be_switched_off(app: Celery, settings: BridgeSettings) -> None:
    """With ``bridge_tracing = "off"`` messages have no context."""
    app.finalize()
    outbox = Outbox(app, settings.model_copy(update={"tracing": "off"}))
    message = outbox.prepare(HANDLERS["t.plain"], stored({"traceparent": TRACEPARENT}), b"1-1")
    assert message.stamped
    assert b"traceparent" not in message.stamped
    outbox.close()


def test_a_listener_of_the_user_gets_each_message_beside_the_instrumentation(outbox: Outbox, queues: Queues) -> None:
    """While the user's receiver is connected, Celery makes the messages, and each has a span of the instrumentation."""

    def receiver(headers: dict[str, Any], **_: Any) -> None:
        headers["seen"] = headers["id"]

    before_task_publish.connect(receiver)
    try:
        with instrumented() as exporter:
            outbox.refresh()
            message = outbox.prepare(HANDLERS["t.plain"], stored({"traceparent": TRACEPARENT}), b"1-1")
            outbox.send([message])
    finally:
        before_task_publish.disconnect(receiver)
    assert not message.stamped
    assert [span.name for span in exporter.get_finished_spans()] == ["apply_async/t.plain"]
    assert [one["headers"]["seen"] for one in queues.messages()] == [message.task_id]


def test_a_malformed_context_is_counted_once(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues
) -> None:
    """An event with a malformed context is dispatched without it, and counted once, not for each handler."""
    register_handlers("t.all", "t.exact")
    subscriber = start_subscriber()
    with EventBus(settings) as bus:
        bus.publish("dream.created", metadata={"traceparent": '00-"},"x":{'})
        eventually(lambda: queues.length() == 2, "the messages are sent")
    assert not any("traceparent" in message["headers"] for message in queues.messages())
    eventually(lambda: subscriber.info().get("invalid_trace") == 1, "it is counted")

"""Spans of publications, and the trace context that events carry."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, TraceState
from redis import Redis

from bridge import BridgeSettings, BusUnavailable, Event, EventBus, InvalidEvent, LocalBus
from bridge.bus.causation import handling
from bridge.events.signing import Keyring
from bridge.telemetry import LogThrottle, otel
from bridge.telemetry import span as span_module
from bridge.testing.redis_server import RedisServer
from tests.support.outside import SIGNED, Outside
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT, recorded_spans
from tests.support.waiting import eventually


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    with recorded_spans(monkeypatch) as exporter:
        yield exporter


def parent_named_by(span: ReadableSpan) -> str:
    """Return the ``traceparent`` of what follows from a span."""
    found = span.get_span_context()
    assert found is not None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def test_a_publication_is_a_span(bus: EventBus, spans: InMemorySpanExporter) -> None:
    """The span follows the conventions for messaging, without the payload, and the stored event names it."""
    with otel._tracer.start_as_current_span("request") as request:
        event = bus.publish("order.paid", {"secret": "s3cret"}, id="e1", correlation_id="c1").event
    span, _ = spans.get_finished_spans()
    assert (span.name, span.kind, span.parent) == ("publish order.paid", SpanKind.PRODUCER, request.get_span_context())
    assert span.attributes == {
        "messaging.system": "redis",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "order.paid",
        "messaging.message.id": "e1",
        "messaging.message.conversation_id": "c1",
    }
    assert event.metadata == {"traceparent": parent_named_by(span)}
    assert bus.get_event("e1") == event
    assert "s3cret" not in span.to_json()


def test_many_publications_are_one_span(bus: EventBus, spans: InMemorySpanExporter) -> None:
    """``publish_many`` has one span, also if it needs several round trips, and all its events name it."""
    publications = bus.publish_many(Event(type="a.b", id=f"n{number}") for number in range(1200))
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("publish", SpanKind.PRODUCER)
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 1200
    assert {one.event.metadata["traceparent"] for one in publications if one.event.metadata} == {parent_named_by(span)}


@pytest.mark.parametrize("given", [TRACEPARENT, "malformed"])
def test_the_callers_context_is_kept(bus: EventBus, spans: InMemorySpanExporter, given: str) -> None:
    """A context that the caller gives is not modified, even if it is malformed; the span is linked to a valid one."""
    metadata = {"traceparent": given, "tracestate": "a=b"}
    assert bus.publish("a.b", metadata=metadata).event.metadata == metadata
    (span,) = spans.get_finished_spans()
    assert [f"{link.context.span_id:016x}" for link in span.links] == ([SPAN_ID] if given == TRACEPARENT else [])


def test_the_same_event_in_another_trace_is_a_duplicate(bus: EventBus, spans: InMemorySpanExporter) -> None:
    """An event that is published again within another trace is a duplicate, not a conflict."""
    first, again = (bus.publish("a.b", {"n": 1}, id="e1", timestamp=1) for _ in range(2))
    assert first.event.metadata != again.event.metadata
    assert (again.duplicate, again.conflict) == (True, False)


def test_the_context_is_signed(
    client: Redis, settings: BridgeSettings, outside: Outside, spans: InMemorySpanExporter
) -> None:
    """The signature of an event covers its trace context."""
    with EventBus(settings.model_copy(update=SIGNED)) as bus:
        bus.publish("billing.paid", id="e1")
        data = bytes(client.get(outside.keys.event("e1")) or b"")
    keyring = Keyring(SIGNED["signing_keys"], settings.channel_prefix)
    assert keyring.verify(data)["metadata"]["traceparent"].startswith("00-")
    with pytest.raises(InvalidEvent, match="signed"):
        keyring.verify(data.replace(b'"traceparent":"00-', b'"traceparent":"01-'))


def test_baggage_and_long_states_stay_here(bus: EventBus, spans: InMemorySpanExporter) -> None:
    """An event carries no baggage, which may be personal, and no state of more than 512 characters."""
    state = TraceState([(f"vendor{number}", "x" * 200) for number in range(3)])
    parent = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=state)
    within = trace.set_span_in_context(trace.NonRecordingSpan(parent), baggage.set_baggage("user", "Ada"))
    token = context.attach(within)
    try:
        event = bus.publish("a.b").event
    finally:
        context.detach(token)
    assert event.metadata is not None
    assert event.metadata.keys() == {"traceparent"}


def test_an_event_that_has_no_room_for_a_context_has_none(
    settings: BridgeSettings, spans: InMemorySpanExporter
) -> None:
    """Tracing does not make a valid event too large."""
    event = Event(type="a.b", payload="x" * 900, source="s")
    with EventBus(settings.model_copy(update={"max_event_bytes": len(event.encode())})) as bus:
        assert bus.publish(event).event == event
        with pytest.raises(InvalidEvent, match="bytes"):
            bus.publish("a.b", "x" * 2000)


def test_a_publication_that_fails(own_server: RedisServer, spans: InMemorySpanExporter) -> None:
    """The span of a publication that failed has the class and the text of the error."""
    with EventBus(redis_url=own_server.url, publish_timeout_s=0.2) as bus:
        own_server.kill()
        with pytest.raises(BusUnavailable):
            bus.publish("a.b")
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, "BusUnavailable")
    assert [event.name for event in span.events] == ["exception"]


class Broken:
    """A tracer whose sampler, processors or propagator are broken."""

    def start_span(self, *_: Any, **__: Any) -> Any:
        raise LookupError("no sampler")


def test_errors_of_tracing_stop_nothing(
    bus: EventBus, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If OpenTelemetry fails, events are published without a context, and one line is logged."""
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patched:
        patched.setattr(otel, "_tracer", Broken())
        patched.setattr(span_module, "_throttle", LogThrottle(1e9))
        publications = [bus.publish("a.b"), *bus.publish_many([Event(type="a.b"), Event(type="a.c")])]
    assert [one.event.metadata for one in publications] == [None] * 3
    assert [getattr(one, "action", "") for one in caplog.records] == ["tracing_failed"]


@pytest.mark.parametrize(("replay", "continued"), [(None, True), ({"name": "r", "at": 1}, False)])
def test_a_process_that_is_not_traced_passes_the_trace_on(bus: EventBus, replay: Any, continued: bool) -> None:
    """What a handler publishes without spans continues the trace of its event, except in a replay."""
    with handling(Event(type="a.b", metadata={"traceparent": TRACEPARENT, "replay": replay})):
        metadata = bus.publish("a.c").event.metadata
    assert metadata == ({"traceparent": TRACEPARENT} if continued else None)


def test_local_handlers_continue_the_trace(
    bus: EventBus, settings: BridgeSettings, spans: InMemorySpanExporter
) -> None:
    """A local handler of another process runs in the trace of the event; ``LocalBus`` adds nothing to an event."""
    seen: list[str] = []
    bus.subscribe("a.*", lambda _: seen.append(f"{trace.get_current_span().get_span_context().span_id:016x}"))
    with EventBus(settings) as other:
        other.publish("a.b", metadata={"traceparent": TRACEPARENT})
    assert eventually(lambda: seen, "the handler was called") == [SPAN_ID]
    assert LocalBus().publish("a.b").event.metadata is None


def test_tracing_can_be_switched_off(settings: BridgeSettings, spans: InMemorySpanExporter) -> None:
    """With ``bridge_tracing = "off"`` there are neither spans nor contexts."""
    with EventBus(settings.model_copy(update={"tracing": "off"})) as bus, handling(Event(type="a.b")):
        assert bus.publish("a.b").event.metadata is None
        assert bus.publish_many([Event(type="a.b")])[0].event.metadata is None
    assert spans.get_finished_spans() == ()


def test_spans_are_named_by_few_types(bus: EventBus, spans: InMemorySpanExporter) -> None:
    """A program that invents types has at most about a hundred names of spans; the attribute has each type."""
    for number in range(130):
        bus.publish(f"invented.t{number}")
    found = spans.get_finished_spans()
    assert len({span.name for span in found}) <= 101
    last = found[-1]
    assert last.name == "publish (other)"
    assert last.attributes is not None
    assert last.attributes["messaging.destination.name"] == "invented.t129"
    assert last.attributes["messaging.destination.template"] == "(other)"


def test_a_program_without_opentelemetry_does_not_get_it(settings: BridgeSettings) -> None:
    """Nothing of the bridge imports OpenTelemetry where there is no SDK, though redis-py imports it if it is there."""
    program = (
        "import sys, bridge.worker, bridge.cli\n"
        "with bridge.EventBus(redis_url=sys.argv[1], channel_prefix=sys.argv[2]) as bus:\n"
        "    event = bus.publish('a.b', metadata={'traceparent': sys.argv[3]}).event\n"
        "print(event.metadata, 'bridge.telemetry.otel' in sys.modules)"
    )
    arguments = [settings.url, settings.channel_prefix, TRACEPARENT]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout == f"{ {'traceparent': TRACEPARENT} } False\n"


def test_a_trace_is_continued_without_an_sdk(bus: EventBus) -> None:
    """A program that only passes traces on, because it has no SDK, passes them on to the events that it publishes."""
    parent = trace.SpanContext(int(TRACE_ID, 16), int(SPAN_ID, 16), is_remote=True, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(parent)):
        assert bus.publish("a.b").event.metadata == {"traceparent": TRACEPARENT}

"""Spans of OpenTelemetry: of this process in memory, of other processes in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

#: A trace context as another program writes it.
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, SPAN_ID = TRACEPARENT.split("-")[1:3]


@contextmanager
def recorded_spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Record the spans of this process during the block. A program can set its provider only once."""
    from bridge.telemetry import otel, tracing
    from bridge.telemetry.counters import TypeLabels

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with monkeypatch.context() as patched:
        patched.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
        patched.setattr(otel, "_tracer", provider.get_tracer("bridge"))
        patched.setattr(tracing, "_labels", TypeLabels())
        yield exporter
    provider.shutdown()


class SpanFile(SpanExporter):
    """Appends spans to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._path.open("a") as file:
            file.write("".join(f"{span.to_json(indent=None)}\n" for span in spans))
        return SpanExportResult.SUCCESS


@dataclass(frozen=True)
class WrittenSpan:
    """One span of such a file."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str | None
    links: tuple[str, ...]
    status: str
    attributes: dict[str, Any]
    text: str


def read_spans(path: Path) -> list[WrittenSpan]:
    """Return the spans of a file, in the order in which they ended."""
    return [_span(line) for line in path.read_text().splitlines()] if path.exists() else []


def _span(line: str) -> WrittenSpan:
    fields = json.loads(line)
    parent = fields["parent_id"]
    return WrittenSpan(
        fields["name"],
        fields["kind"].removeprefix("SpanKind."),
        fields["context"]["trace_id"].removeprefix("0x"),
        fields["context"]["span_id"].removeprefix("0x"),
        parent and parent.removeprefix("0x"),
        tuple(link["context"]["span_id"].removeprefix("0x") for link in fields["links"]),
        fields["status"]["status_code"],
        fields["attributes"],
        line,
    )

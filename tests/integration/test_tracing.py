"""Traces of OpenTelemetry from a web server over real workers to the last task of a chain of events."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Processes
from tests.support.site import Site
from tests.support.spans import WrittenSpan, read_spans
from tests.support.waiting import eventually

#: The steps of one request, from the first to the last.
EVENTS = ("order.placed", "order.paid", "order.shipped")


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


def start_worker(processes: Processes, spans: Path, **environment: str) -> Any:
    command = ("worker", "--without-mingle", "-l", "INFO", "-c", "2")
    return processes.celery(*command, name="w1", app="tests.traced", TEST_SPANS=str(spans), **environment)


def request(processes: Processes, spans: Path, times: int = 1, **environment: str) -> None:
    command = (sys.executable, "-m", "tests.traced", str(times))
    assert processes.start(*command, name="server", TEST_SPANS=str(spans), **environment).wait(30) == 0


def path_to(last: WrittenSpan, written: list[WrittenSpan]) -> list[str]:
    """Return the names of the spans from the first one of a trace to *last*."""
    by_id = {span.span_id: span for span in written}
    path = [last]
    while path[0].parent_id is not None:
        path.insert(0, by_id[path[0].parent_id])
    return [span.name for span in path]


@pytest.mark.parametrize("instrumented", ["no", "yes"])
@pytest.mark.parametrize("where", ["pool", "main"])
def test_one_trace_from_the_request_to_the_last_task(
    processes: Processes, site: Site, spans: Path, instrumented: str, where: str
) -> None:
    """Each span is a child of the one that caused it, with and without OpenTelemetry's instrumentation of Celery.

    Dispatch is not changed by it: one transaction, without spans.
    """
    start_worker(processes, spans, TEST_OTEL=where, TEST_INSTRUMENTED=instrumented)
    request(processes, spans)
    tasks = {"no": [f"process {name}" for name in EVENTS], "yes": [f"run/tests.traced.{n}" for n in NAMES]}
    steps = ["POST /orders"]
    for event_type, task in zip(EVENTS, tasks[instrumented], strict=True):
        steps += [f"publish {event_type}", task]
    written = eventually(lambda: len(found := read_spans(spans)) >= len(steps) and found, "all spans have ended")
    assert sorted(span.name for span in written) == sorted(steps)
    assert path_to(next(span for span in written if span.name == steps[-1]), written) == steps
    for span in written:
        if span.kind == "CONSUMER":
            assert span.parent_id in span.links
            assert span.attributes["bridge.outcome"] == "succeeded"
            assert span.attributes["messaging.consumer.group.name"] == "traced"
    assert "publishing_is_wrapped" not in processes.log("w1")
    assert "in one transaction" in processes.log("w1")


NAMES = ("pay", "ship", "thank")

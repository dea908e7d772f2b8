"""Traces of OpenTelemetry from a web server over real workers to the last task of a chain of events."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event
from tests.support.outside import Outside
from tests.support.processes import Processes
from tests.support.queues import Queues
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT, WrittenSpan, read_spans
from tests.support.waiting import eventually

#: The steps of one request, from the first to the last: the type of each event and its handler.
STEPS = {"order.placed": "pay", "order.paid": "ship", "order.shipped": "thank"}

StartWorker = Callable[..., Any]


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


@pytest.fixture
def outside(client: Redis, settings: BridgeSettings) -> Outside:
    return Outside(client, settings)


@pytest.fixture
def start_worker(processes: Processes, spans: Path) -> StartWorker:
    """Start a worker of ``tests/traced.py`` with two pool processes."""

    def start(name: str = "w1", **environment: str) -> Any:
        command = ("worker", "--without-mingle", "-n", f"{name}@test", "-l", "INFO", "-c", "2")
        return processes.celery(*command, name=name, app="tests.traced", TEST_SPANS=str(spans), **environment)

    return start


def request(processes: Processes, spans: Path, times: int = 1, **environment: str) -> None:
    """Have the web server process so many requests."""
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
    processes: Processes, spans: Path, start_worker: StartWorker, instrumented: str, where: str
) -> None:
    """Each span is a child of the one that caused it, with and without OpenTelemetry's instrumentation of Celery.

    Dispatch is not changed by it: one transaction, without spans.
    """
    start_worker(TEST_OTEL=where, TEST_INSTRUMENTED=instrumented)
    request(processes, spans)
    steps = ["POST /orders"]
    for event_type, handler in STEPS.items():
        task = f"process {event_type}" if instrumented == "no" else f"run/tests.traced.{handler}"
        steps += [f"publish {event_type}", task]
    written = eventually(lambda: len(found := read_spans(spans)) >= len(steps) and found, "all spans have ended")
    assert sorted(span.name for span in written) == sorted(steps)
    assert path_to(next(span for span in written if span.name == steps[-1]), written) == steps
    for span in (span for span in written if span.kind == "CONSUMER"):
        assert span.parent_id in span.links
        assert span.attributes["bridge.outcome"] == "succeeded"
        assert span.attributes["messaging.consumer.group.name"] == "traced"
        assert span.attributes["bridge.attempt"] == 1
    assert "publishing_is_wrapped" not in processes.log("w1")
    assert "in one transaction" in processes.log("w1")


def test_a_request_that_is_not_sampled_has_no_spans(
    processes: Processes, spans: Path, start_worker: StartWorker, client: Redis, prefix: str
) -> None:
    """Of a sample of the requests each has all of its spans; the tasks of the others know that they are not sampled."""
    sample = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.3"}
    start_worker(TEST_OTEL="main", TEST_INSTRUMENTED="yes", **sample)
    request(processes, spans, 50, **sample)
    eventually(lambda: client.llen(f"{prefix}thanked") == 50, "all tasks have ended", 40)
    thanked = client.lrange(f"{prefix}thanked", 0, -1)
    sampled = thanked.count(b"sampled")
    assert 0 < sampled < 50
    assert thanked.count(b"not sampled") == 50 - sampled
    eventually(lambda: len(read_spans(spans)) >= 7 * sampled, "all spans have ended")
    traces = defaultdict(list)
    for span in read_spans(spans):
        traces[span.trace_id].append(span.name)
    assert [len(names) for names in traces.values()] == [7] * sampled


def test_events_of_other_programs(spans: Path, start_worker: StartWorker, outside: Outside, client: Redis) -> None:
    """A handler continues the trace of any publisher that writes ``traceparent``; a malformed one begins another."""
    contexts = {
        "valid": {"traceparent": TRACEPARENT, "tracestate": 'a="b\\"'},
        "malformed": {"traceparent": f'{TRACEPARENT}","x":"y'},
        "a list": {"traceparent": [TRACEPARENT]},
        "none": None,
    }
    for name, metadata in contexts.items():
        event = Event(type="order.shipped", id=name.replace(" ", "-"), payload={"order": name}, metadata=metadata)
        outside.keep(event.id, event.encode())
    start_worker(TEST_OTEL="pool")
    written = eventually(lambda: len(found := read_spans(spans)) >= 4 and found, "all spans have ended")
    found = {span.attributes["messaging.message.id"]: span for span in written}
    assert (found["valid"].trace_id, found["valid"].parent_id) == (TRACE_ID, SPAN_ID)
    for name in ("malformed", "a-list", "none"):
        assert (found[name].parent_id, found[name].links) == (None, ())
    assert client.llen(f"{outside.settings.channel_prefix}thanked") == 4


@pytest.mark.parametrize("instrumented", ["no", "yes"])
def test_what_becomes_of_tasks(
    spans: Path,
    start_worker: StartWorker,
    outside: Outside,
    shell: Callable[..., Any],
    instrumented: str,
) -> None:
    """Retries and dead letters have spans with their outcome, errors without secrets; a replay is another trace."""
    secret = "Elm Street 7"
    traced = {"metadata": {"traceparent": TRACEPARENT}}
    for event in (
        Event(type="order.paid", id="again", payload={"order": 1, "unreachable": True}, **traced),
        Event(type="order.refused", id="refused", payload={"address": secret}, **traced),
        Event(type="order.sized", id="invalid", payload={"size": "large"}, **traced),
    ):
        outside.keep(event.id, event.encode())
    environment = {"BRIDGE_REDACT_PATHS": '["payload.address"]', "BRIDGE_MAINTENANCE_INTERVAL_S": "0.2"}
    start_worker(TEST_INSTRUMENTED=instrumented, **environment)

    def of(event_id: str) -> list[WrittenSpan]:
        """Return the spans of the tasks of an event."""
        return [
            span
            for span in read_spans(spans)
            if span.kind == "CONSUMER" and span.attributes.get("bridge.event_id") == event_id
        ]

    eventually(lambda: [len(of(name)) for name in ("again", "refused", "invalid")] == [2, 1, 1], "all tasks ended")
    first, second = of("again")
    assert [(span.attributes["bridge.attempt"], span.attributes["bridge.outcome"]) for span in (first, second)] == [
        (1, "retried"),
        (2, "succeeded"),
    ]
    assert {span.trace_id for span in (first, second)} == {TRACE_ID}
    assert first.status == "UNSET"
    (refused,) = of("refused")
    assert (refused.status, refused.attributes["bridge.outcome"]) == ("ERROR", "deadlettered")
    assert refused.attributes["error.type"] == "ValueError"
    assert "cannot be delivered to [redacted]" in refused.text
    (invalid,) = of("invalid")
    assert (invalid.status, invalid.attributes["bridge.outcome"]) == ("ERROR", "deadlettered")
    assert invalid.attributes["error.type"] == "payload"

    result = shell(f'"{sys.executable}" -m celery -A tests.traced bus dead retry --id refused --yes')
    assert result.returncode == 0, result.stderr
    _, replayed = eventually(lambda: len(found := of("refused")) == 2 and found, "the task ran again")
    assert replayed.trace_id != TRACE_ID
    assert replayed.parent_id is None
    assert replayed.links == (SPAN_ID,)
    assert replayed.attributes["bridge.replay"]
    assert secret not in spans.read_text()


def test_sentry_measures_each_message(
    processes: Processes, start_worker: StartWorker, outside: Outside, client: Redis, queues: Queues
) -> None:
    """With Sentry's integration Celery makes each message, with its own time, and one warning says what that costs."""
    processes.celery("bus", "subscribe", name="subscriber", app="tests.traced", TEST_SENTRY="yes")
    published = [Event(type="order.shipped", payload={"order": number}) for number in range(5)]
    for number, event in enumerate(published, 1):
        outside.write(event.encode(), id=event.id, type=event.type)
        eventually(lambda number=number: queues.length() == number, "it is dispatched")
    times = [message["headers"]["sentry-task-enqueued-time"] for message in queues.messages()]
    assert sorted(times) == times
    assert len(set(times)) == 5
    (warning,) = [line for line in processes.log("subscriber").splitlines() if "sentry_sdk.integrations.celery" in line]
    assert "at least once" in warning
    start_worker("w1", TEST_SENTRY="yes", BRIDGE_LISTEN_TYPES='["none"]')
    eventually(lambda: client.llen(f"{queues.prefix}thanked") == 5, "the handlers have run")

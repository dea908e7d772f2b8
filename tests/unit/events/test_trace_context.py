"""The trace context in the metadata of an event: which forms are passed on, and which are ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge import Event
from bridge.events import EncodedEvent, TraceContext, trace_context_of, with_context
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT

IDS = TRACEPARENT[3:-3]


@pytest.mark.parametrize(
    "parent",
    [
        TRACEPARENT,
        f"00-{IDS}-00",
        f"cc-{IDS}-01",  # later versions are read as this one
        f"01-{IDS}-01-what-the-future-will-be-like",
    ],
)
def test_valid_contexts(parent: str) -> None:
    """The ids and flags of any version are passed on, in the form of the version that the bridge knows."""
    context = trace_context_of({"traceparent": parent})
    assert context == TraceContext(f"00-{IDS}-{parent[53:55]}")
    assert (context.trace_id, SPAN_ID in context.traceparent) == (TRACE_ID, True)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "no context",
        f"ff-{IDS}-01",
        f"00-{IDS}-01-more",
        f"cc-{IDS[:-1]}-01-and-more",
        f"cc-{IDS}-010",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        TRACEPARENT.upper(),
        TRACEPARENT + "\n",
        f" {TRACEPARENT}",
        TRACEPARENT.replace("1", '"', 1),
        TRACEPARENT.replace("0", "٠"),  # a digit, but not ASCII
        f"cc-{IDS}-01-{'x' * 1_000_000}",
        [TRACEPARENT],
        {"traceparent": TRACEPARENT},
        7,
        True,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_malformed_contexts_are_ignored(parent: Any) -> None:
    """Whatever does not have the form of the standard is no context; the event itself is valid."""
    assert trace_context_of({"traceparent": parent}) is None
    event = EncodedEvent.read(Event(type="a.b", metadata={"traceparent": parent}).encode())
    assert event.traced_by is not None
    assert (event.trace, event.trace_headers) == (None, ())


@pytest.mark.parametrize("metadata", [None, {}, {"traceparent": None}, {"tracestate": "a=b"}, {"hops": 1}])
def test_no_context(metadata: dict[str, Any] | None) -> None:
    """An event without a context is not counted as one with a malformed context."""
    event = EncodedEvent.read(Event(type="a.b", metadata=metadata).encode())
    assert event.traced_by is event.trace is None


@pytest.mark.parametrize("metadata", ["text", 7, [TRACEPARENT]])
def test_metadata_of_another_type(metadata: Any) -> None:
    """Metadata that is no object has no context."""
    assert trace_context_of(metadata) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("vendor=value", True),
        ("x" * 512, True),
        ("x" * 513, False),
        ("", False),
        ("a=b\r\nInjected: header", False),
        ("a=ü", False),
        (["a=b"], False),
    ],
    ids=["usual", "longest", "too long", "empty", "line break", "not ASCII", "list"],
)
def test_a_malformed_state_is_left_out(state: Any, kept: bool) -> None:
    """A state that is malformed or longer than 512 characters is left out, and the trace goes on."""
    context = trace_context_of({"traceparent": TRACEPARENT, "tracestate": state})
    assert context == TraceContext(TRACEPARENT, state if kept else "")
    event = EncodedEvent.read(Event(type="a.b", metadata={"traceparent": TRACEPARENT, "tracestate": state}).encode())
    assert event.trace == context
    in_json = [json.loads(b'"%b"' % value) for value in event.trace_headers]
    assert in_json == list(context.headers.values()) == [TRACEPARENT, *([state] if kept else [])]


def test_a_new_context_replaces_the_state_of_another_one() -> None:
    """Metadata with a state but no parent does not mix two traces."""
    found = with_context({"tracestate": "old=1", "hops": 2}, TraceContext(TRACEPARENT))
    assert found == {"hops": 2, "traceparent": TRACEPARENT}

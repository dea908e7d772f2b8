"""The trace context of an event: which span of a distributed trace published it, by W3C Trace Context.

It is in ``metadata.traceparent`` and ``metadata.tracestate``. Any publisher can write anything there, and the values
become headers of task messages, so only what has the form of the standard is passed on.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from bridge.events.validation import replay_of

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
#: ``version-trace-span-flags``. Zeros are invalid.
_is_parent = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
#: Later versions of the standard may append more. There will be no version ff.
_LATER = re.compile(r"(?!00|ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]*)?")
#: Longest ``tracestate``: the standard requires that programs pass on so many characters, and no more.
_MAX_STATE_CHARS = 512
#: Length of a ``traceparent`` of this version, and of the longest one that is read.
_PARENT_CHARS, _MAX_PARENT_CHARS = 55, 200


class TraceContext(NamedTuple):
    """The span that published an event, as the two headers of the standard.

    Arguments:
        traceparent: Ids of the trace and of the span, and whether the trace is sampled.
        tracestate: What the tracing systems of the publishers have added; empty if there is nothing.
    """

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """Id of the trace, 32 hexadecimal digits."""
        return self.traceparent[3:35]

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a message, without empty ones."""
        values = {TRACEPARENT: self.traceparent, TRACESTATE: self.tracestate}
        return {name: value for name, value in values.items() if value}


def trace_context_of(metadata: Any) -> TraceContext | None:
    """Return the trace context in the metadata of an event; None without one, or if it is malformed.

    A malformed or too long ``tracestate`` is left out, as the standard demands.
    """
    parent = _parent_in(metadata) if type(metadata) is dict else ""
    return TraceContext(parent, _state_in(metadata)) if parent else None


def headers_in_json(metadata: dict[str, Any]) -> tuple[bytes, ...]:
    """Return the values of :attr:`TraceContext.headers`, as they are within the quotes of a JSON text.

    Nothing if there is no context, or a malformed one. This takes half as long as to make a :class:`TraceContext`.
    """
    parent = _parent_in(metadata)
    if not parent:
        return ()
    state = _state_in(metadata)
    return (parent.encode(), state.replace("\\", "\\\\").replace('"', '\\"').encode()) if state else (parent.encode(),)


def _parent_in(metadata: dict[str, Any]) -> str:
    parent = metadata.get(TRACEPARENT)
    if type(parent) is not str:
        return ""
    if _is_parent(parent):
        return parent
    # Of a later version the bridge understands, and can pass on, what this one has.
    known = f"00{parent[2:_PARENT_CHARS]}"
    usable = len(parent) <= _MAX_PARENT_CHARS and _LATER.fullmatch(parent) and _is_parent(known)
    return known if usable else ""


def _state_in(metadata: dict[str, Any]) -> str:
    state = metadata.get(TRACESTATE)
    if type(state) is str and len(state) <= _MAX_STATE_CHARS and state.isascii() and state.isprintable():
        return state
    return ""


def parent_of(metadata: Any) -> TraceContext | None:
    """Return the trace context that tasks of the event continue; None for a replay, which begins another trace."""
    return None if isinstance(metadata, dict) and replay_of(metadata) is not None else trace_context_of(metadata)


def with_context(metadata: dict[str, Any] | None, context: TraceContext) -> dict[str, Any]:
    """Return the metadata of an event that is published in *context*."""
    others = {name: value for name, value in (metadata or {}).items() if name not in (TRACEPARENT, TRACESTATE)}
    return others | context.headers

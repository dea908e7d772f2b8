"""The trace context of an event: which span of a distributed trace published it, by W3C Trace Context.

It is in ``metadata.traceparent`` and ``metadata.tracestate``. Any publisher can write anything there, and the values
become headers of task messages, so only what has the form of the standard is passed on.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from bridge.events.validation import replay_of

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
#: ``version-trace-span-flags``; later versions of the standard may append more. Zeros and the version ff are invalid.
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
#: Printable ASCII. The standard requires that programs pass on 512 characters, and no more.
_STATE = re.compile(r"[ -~]{1,512}")
#: The longest ``traceparent`` that is read: of the version that is known, and something for later ones.
_MAX_PARENT_CHARS = 200


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
        """The headers of a message, without an empty one."""
        state = {TRACESTATE: self.tracestate} if self.tracestate else {}
        return {TRACEPARENT: self.traceparent} | state

    @property
    def in_json(self) -> tuple[bytes, ...]:
        """The values of :attr:`headers`, as they are within the quotes of a JSON text."""
        if not self.tracestate:
            return (self.traceparent.encode(),)
        return self.traceparent.encode(), self.tracestate.replace("\\", "\\\\").replace('"', '\\"').encode()


def trace_context_of(metadata: Any) -> TraceContext | None:
    """Return the trace context in the metadata of an event; None without one, or if it is malformed.

    A malformed or too long ``tracestate`` is left out, as the standard demands.
    """
    parent = metadata.get(TRACEPARENT) if isinstance(metadata, dict) else None
    if not isinstance(parent, str) or len(parent) > _MAX_PARENT_CHARS:
        return None
    found = _PARENT.fullmatch(parent)
    if found is None or (found[1] == "00" and found[5]):
        return None
    state = metadata.get(TRACESTATE)
    usable = isinstance(state, str) and _STATE.fullmatch(state)
    # Of a later version the bridge understands, and so passes on, only what version 00 has.
    return TraceContext(f"00-{found[2]}-{found[3]}-{found[4]}", state if usable else "")


def parent_of(metadata: Any) -> TraceContext | None:
    """Return the trace context that tasks of the event continue; None for a replay, which begins another trace."""
    return None if isinstance(metadata, dict) and replay_of(metadata) is not None else trace_context_of(metadata)


def with_context(metadata: dict[str, Any] | None, context: TraceContext) -> dict[str, Any]:
    """Return the metadata of an event that is published in *context*."""
    others = {name: value for name, value in (metadata or {}).items() if name not in (TRACEPARENT, TRACESTATE)}
    return others | context.headers

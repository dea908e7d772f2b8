"""What an event is: the model, strict JSON, type patterns, signatures and redaction.

Any part may use it. Nothing here does I/O, so there is nothing that a crash could leave behind.
"""

from bridge.events import wire
from bridge.events.cause import Cause
from bridge.events.clock import now_ms
from bridge.events.dialects import TYPESCRIPT_BUS_SOURCE
from bridge.events.encoded import EncodedEvent, fingerprint
from bridge.events.event import Event, caused_by
from bridge.events.patterns import Patterns, compile_pattern, escape_glob, example_of, is_literal
from bridge.events.redaction import NO_REDACTION, REDACTED, Redaction, redaction_of
from bridge.events.signing import CLOCK_SKEW_S, Keyring, SigningKeys, is_signed, unsigned
from bridge.events.trace_context import (
    TRACEPARENT,
    TRACESTATE,
    TraceContext,
    parent_of,
    trace_context_of,
    with_context,
)
from bridge.events.validation import ID_PATTERN, SIGNATURE, check_type, hops_of, replay_of
from bridge.events.wire import MAX_DEPTH

__all__ = [
    "CLOCK_SKEW_S",
    "ID_PATTERN",
    "MAX_DEPTH",
    "NO_REDACTION",
    "REDACTED",
    "SIGNATURE",
    "TRACEPARENT",
    "TRACESTATE",
    "TYPESCRIPT_BUS_SOURCE",
    "Cause",
    "EncodedEvent",
    "Event",
    "Keyring",
    "Patterns",
    "Redaction",
    "SigningKeys",
    "TraceContext",
    "caused_by",
    "check_type",
    "compile_pattern",
    "escape_glob",
    "example_of",
    "fingerprint",
    "hops_of",
    "is_literal",
    "is_signed",
    "now_ms",
    "parent_of",
    "redaction_of",
    "replay_of",
    "trace_context_of",
    "unsigned",
    "wire",
    "with_context",
]

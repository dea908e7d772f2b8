"""Formatting for the templates: badges of states, JSON, times."""

from __future__ import annotations

import json
from typing import Any

from flower.utils.template import format_duration

from bridge.events import Event, trace_context_of

#: CSS classes of the badges; for states that Flower knows, those of its task pages.
_BADGES = {
    "SUCCESS": "text-bg-success",
    "FAILURE": "text-bg-danger",
    "GIVEN_UP": "text-bg-danger",
    "STARTED": "task-state-started",
    "RETRY": "text-bg-warning",
}
_KNOWN = {"id", "type", "payload", "timestamp", "source", "metadata", "correlationId"}


def badge(state: str) -> str:
    """Return the CSS class of the badge for a state."""
    return _BADGES.get(state, "text-bg-secondary")


def busy(state: str) -> bool:
    """Whether a task in this state has not ended yet."""
    return state in {"WAITING", "SENT", "STARTED", "RETRY"}


def pretty(value: Any) -> str:
    """Return JSON with indentation. A lone surrogate, which UTF-8 cannot encode, is escaped."""
    return text(json.dumps(value, indent=2, ensure_ascii=False))


def text(value: str) -> str:
    """Return a text that UTF-8 can encode."""
    return value.encode(errors="backslashreplace").decode()


def short(event_id: str) -> str:
    """Return the start of a long id."""
    return event_id if len(event_id) <= 12 else f"{event_id[:8]}…"


def duration(seconds: float) -> str:
    """Return a duration that was measured in ms; Flower's own function would show fractions of a ms."""
    ms = round(seconds * 1000)
    if ms < 1:
        return "under 1 ms"
    if ms < 1000:
        return f"{ms} ms"
    return str(format_duration(seconds))


def others(event: Event) -> dict[str, Any]:
    """Return the fields of an event that the wire format does not define."""
    return {name: value for name, value in event.to_dict().items() if name not in _KNOWN}


def cause(event: Event) -> str:
    """Return the id of the event that caused this one; empty if the event does not name one."""
    causation = (event.metadata or {}).get("causationId")
    return causation if isinstance(causation, str) else ""


def trace_id(event: Event) -> str:
    """Return the id of the trace in which an event was published; empty without one."""
    trace = trace_context_of(event.metadata)
    return trace.trace_id if trace else ""

"""How templates show things: names and colours of states, JSON, times."""

from __future__ import annotations

import json
from typing import Any

from flower.utils.template import format_duration

from bridge.events import Event

#: Classes of the badges, those of Flower's task pages where it has the state.
_BADGES = {
    "SUCCESS": "text-bg-success",
    "FAILURE": "text-bg-danger",
    "STARTED": "task-state-started",
    "RETRY": "text-bg-warning",
}
_KNOWN = {"id", "type", "payload", "timestamp", "source", "metadata", "correlationId"}


def badge(state: str) -> str:
    """Return the class of the badge of a state."""
    return _BADGES.get(state, "text-bg-secondary")


def busy(state: str) -> bool:
    """Whether a task in this state has still to run, or to end."""
    return state in {"WAITING", "SENT", "STARTED", "RETRY"}


def pretty(value: Any) -> str:
    """Return JSON for a person. Half a surrogate pair, which has no UTF-8, is spelt out."""
    return text(json.dumps(value, indent=2, ensure_ascii=False))


def text(value: str) -> str:
    """Return a text that UTF-8 can hold."""
    return value.encode(errors="backslashreplace").decode()


def short(event_id: str) -> str:
    """Return the beginning of a long id."""
    return event_id if len(event_id) <= 12 else f"{event_id[:8]}…"


def duration(seconds: float) -> str:
    """Return a short time, which was measured in ms; Flower's own text shows hundredths of them."""
    ms = round(seconds * 1000)
    if ms < 1:
        return "under 1 ms"
    if ms < 1000:
        return f"{ms} ms"
    return str(format_duration(seconds))


def others(event: Event) -> dict[str, Any]:
    """Return the fields of an event that the wire format does not know."""
    return {name: value for name, value in event.to_dict().items() if name not in _KNOWN}


def cause(event: Event) -> str:
    """Return the id of the event that caused this one; empty: none, or none that says so."""
    causation = (event.metadata or {}).get("causationId")
    return causation if isinstance(causation, str) else ""

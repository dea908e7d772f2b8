"""The cause of an event, as it travels from a handler to what the handler publishes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """The cause of an event: what the event that follows from it needs to know. Sent in headers of Celery messages."""

    event_id: str  #: Empty if only the hops are known; the correlation id then as well.
    correlation_id: str
    hops: int
    #: Id of the handler task that publishes the consequence; empty outside a task.
    task_id: str = ""

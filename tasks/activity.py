"""A log of the newest ``dream.*`` events."""

from __future__ import annotations

from bridge import Event, get_bus, on_event
from tasks.names import key

#: Number of events that are kept, the newest ones.
LOG_SIZE = 1000


@on_event("dream.*")
def record(event: Event) -> None:
    """Add the event to the log; adding it twice changes nothing."""
    log = key("activity")
    with get_bus().client.pipeline() as pipe:
        pipe.zadd(log, {f"{event.type} {event.id}": event.timestamp or 0})
        pipe.zremrangebyrank(log, 0, -LOG_SIZE - 1)
        pipe.execute()

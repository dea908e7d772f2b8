"""What has been going on with dreams: a rolling log of every ``dream.*`` event."""

from __future__ import annotations

from bridge import Event, get_bus, on_event

#: Events kept, newest first.
LOG_SIZE = 1000
LOG_KEY = "dreams:activity"


@on_event("dream.*")
def record(event: Event) -> None:
    """Note the event; noting it twice changes nothing."""
    with get_bus().client.pipeline() as pipe:
        pipe.zadd(LOG_KEY, {f"{event.type} {event.id}": event.timestamp or 0})
        pipe.zremrangebyrank(LOG_KEY, 0, -LOG_SIZE - 1)
        pipe.execute()

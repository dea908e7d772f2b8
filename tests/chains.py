"""The application of ``tests/app.py`` with different handlers, which publish three levels of events; workers run it."""

from __future__ import annotations

import time

from bridge import Event, get_bus, on_event, publish_event
from tests.app import PREFIX, app, effect

__all__ = ["app"]


@on_event("trip.booked")
def trip(event: Event) -> None:
    publish_event("trip.flight")
    publish_event("trip.hotel")


@on_event("trip.flight")
def flight(event: Event) -> None:
    for seat in (1, 2):
        publish_event("trip.ticket", {"seat": seat})


@on_event("trip.hotel")
def hotel(event: Event) -> None:
    """Fail until the test sets a key."""
    if not get_bus().client.exists(f"{PREFIX}room"):
        raise RuntimeError("no room")
    publish_event("trip.ticket", {"seat": 0})


@on_event("trip.ticket", where=lambda event: event.payload["seat"] != 2)
def ticket(event: Event) -> None:
    effect("ticket", event.id)


@on_event("plain.*", queue="plain")
def plain(event: Event) -> None:
    effect("plain", event.id)


@on_event("sleepy.created")
def sleepy(event: Event) -> None:
    time.sleep(float(event.payload))

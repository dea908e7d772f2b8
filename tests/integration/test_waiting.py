"""Tasks that wait in the memory of a real worker: they are not sent again while it works, and each runs once."""

from __future__ import annotations

from collections import Counter

from bridge import Event, EventBus
from tests.support.site import Site
from tests.support.waiting import eventually

#: Overdue tasks are noticed soon; after two copies a task is given up.
HASTY = {"BRIDGE_LEASE_S": "1", "BRIDGE_MAINTENANCE_INTERVAL_S": "0.1", "BRIDGE_MAX_REDISPATCHES": "2"}


def start_hoarder(site: Site, redispatch_after_s: float) -> None:
    """Start a worker that runs one task at a time, and fetches all others."""
    arguments = ("-c", "1", "--prefetch-multiplier", "100")
    site.processes.worker("w1", *arguments, BRIDGE_REDISPATCH_AFTER_S=str(redispatch_after_s), **HASTY)
    eventually(lambda: "ready." in site.processes.log("w1"), "the worker is ready", 30)


def publish(bus: EventBus, *durations_s: float) -> Counter[str]:
    """Publish an event for each task; return the effects of all."""
    events = [Event(type="slow.created", id=f"e{number}", payload=time) for number, time in enumerate(durations_s)]
    bus.publish_many(events)
    return Counter(f"slow {event.id}" for event in events)


def test_a_worker_that_has_fetched_a_whole_queue(site: Site, bus: EventBus) -> None:
    """Tasks that wait in its memory for four times redispatch_after_s are neither sent again nor given up."""
    start_hoarder(site, 1)
    effects = publish(bus, *[0.2] * 20)
    eventually(lambda: len(site.taken()) >= 15, "the worker has fetched most of them")
    eventually(site.nothing_left, "all have ended", 30)
    assert site.effects() == effects
    assert "seemed to wait; they were sent again" not in site.processes.log("w1")
    assert site.letters.size().count == 0


def test_a_worker_that_has_fetched_tasks_and_is_busy_for_long(site: Site, bus: EventBus) -> None:
    """Tasks behind a long one are sent again twice and given up; then they run once, and no dead letter is left."""
    start_hoarder(site, 0.5)
    effects = publish(bus, 6, *[0.01] * 5)
    eventually(lambda: site.letters.size().count == 5, "all that wait are given up")
    eventually(site.nothing_left, "all have ended", 30)
    assert site.effects() == effects
    assert site.letters.size().count == 0

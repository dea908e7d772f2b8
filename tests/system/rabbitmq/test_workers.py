"""Real workers on RabbitMQ: from an external event to its effect, and every task ends."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.storage import Storage
from tests.support.processes import Processes
from tests.support.servers.rabbitmq import RabbitNode
from tests.support.site import FAST
from tests.support.waiting import eventually
from tests.system.rabbitmq.virtual_host import Rabbit


class Site:
    """One bus, RabbitMQ and workers, and the results of the events."""

    def __init__(self, processes: Processes, settings: BridgeSettings, client: Redis, rabbit: Rabbit) -> None:
        self.processes = processes
        self.prefix = settings.channel_prefix
        self.client = client
        self.rabbit = rabbit
        self.letters = Storage(client, settings).dead_letters
        self.ledger = Storage(client, settings).ledger

    def effects(self) -> Counter[str]:
        return Counter(value.decode() for value in self.client.lrange(f"{self.prefix}effects", 0, -1))

    def worker(self, name: str = "w1", *arguments: str, **environment: str) -> Any:
        started = self.processes.worker(name, *arguments, **FAST | environment)
        eventually(lambda: "ready." in self.processes.log(name), "the worker waits for messages", 30)
        return started

    def dead(self) -> set[tuple[str, str]]:
        """Return the reason and the event id of each dead letter."""
        return {(letter.reason, letter.event_id) for letter in self.letters.latest(100)}

    def done(self) -> bool:
        return not (self.ledger.size() or self.rabbit.length())


@pytest.fixture
def site(rabbit_processes: Processes, settings: BridgeSettings, client: Redis, rabbit: Rabbit) -> Site:
    return Site(rabbit_processes, settings, client, rabbit)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_events_become_effects_and_every_task_ends(site: Site, bus: EventBus, kind: str) -> None:
    """External events, retries, countdowns, expiry, routes and failures work as they do with Redis."""
    site.worker("w1", TEST_QUORUM="1" if kind == "quorum" else "")
    foreign = Event(type="dream.created", id="foreign", payload={"dreamId": 1}, source="shop")
    site.client.set(f"{site.prefix}event:foreign", foreign.encode(), ex=3600)
    site.client.publish(f"{site.prefix}dream.created", foreign.encode())
    for name in ("dream", "retry", "failing", "rejected", "expiring", "delayed"):
        bus.publish(f"{name}.created", id=name)
    bus.publish("routed.elsewhere")
    eventually(lambda: site.dead() and len(site.dead()) == 4, "there are four dead letters")
    assert {event_id for _, event_id in site.dead()} == {"retry", "failing", "rejected", "expiring"}
    eventually(lambda: site.effects()["delayed delayed"], "the countdown has ended")
    eventually(lambda: site.effects()["glob foreign"], "the external event, whose time is independent, has run")
    eventually(site.done, "no task is left")
    ran = {f"{task} {event_id}": 1 for task in ("plain", "glob") for event_id in ("dream", "foreign")}
    ran |= {f"retry {retries}": 1 for retries in range(4)}
    assert site.effects() == Counter(ran | {"delayed delayed": 1, "elsewhere elsewhere": 1})
    held = [level for level in range(28) if site.rabbit.is_there(f"celery_delayed_{level}")]
    assert len(held) == (28 if kind == "quorum" else 0)


def test_a_purged_queue_is_filled_again(site: Site, bus: EventBus) -> None:
    """Messages that an operator purged are sent again when they are overdue; each has one effect."""
    site.worker("w1", "-c", "1", "--prefetch-multiplier", "1")
    bus.publish("slow.created", 3, id="first")
    eventually(lambda: site.ledger.size() == 1 and not site.rabbit.length(), "the only pool process is busy")
    bus.publish_many([Event(type="chosen.x", id=f"e{number}", payload={"yes": 1}) for number in range(20)])
    # They are in the ledger after they were sent. If they were purged earlier, none would be left when the first one
    # ends.
    eventually(lambda: site.ledger.size() == 21 and site.rabbit.length() >= 15, "the others are queued")
    assert site.rabbit.do(lambda channel: channel.queue_purge("celery")) >= 15
    eventually(site.done, "all have ended", 30)
    assert site.effects() == Counter({"slow first": 1} | {f"chosen e{number}": 1 for number in range(20)})
    assert "sent again" in site.processes.log("w1")


def test_rabbitmq_killed_under_load_with_its_worker_at_work(site: Site, bus: EventBus, node: RabbitNode) -> None:
    """After kill -9 of the node under load, every task has one effect, in the same worker."""
    site.worker()
    published: list[str] = []
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.01):
            published.append(bus.publish("chosen.x", {"yes": 1}, id=f"n{len(published)}").event.id)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        eventually(lambda: len(site.effects()) > 50, "tasks run")
        node.kill()
        eventually(lambda: "Dispatch paused" in site.processes.log("w1"), "dispatch fails")
        node.start()
        seen = len(site.effects())
        eventually(lambda: len(site.effects()) > seen + 50, "tasks run again", 40)
    finally:
        stop.set()
        publisher.join()
    eventually(lambda: len(site.effects()) == len(published), "all have run", 40)
    eventually(site.done, "no task is left", 30)
    assert site.effects() == Counter(f"chosen {event_id}" for event_id in published)
    assert not site.dead()

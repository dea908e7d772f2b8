"""RabbitMQ is down, restarted, killed, short of memory or hanging under load: no event is lost, and nothing hangs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from celery import Celery
from redis import Redis

from bridge import Event, EventBus
from bridge.storage.keys import Keys
from bridge.subscriber.subscriber import Subscriber
from tests.support.apps import StartSubscriber
from tests.support.proxy import Proxy
from tests.support.servers.rabbitmq import RabbitNode
from tests.support.waiting import eventually
from tests.system.rabbitmq.virtual_host import Rabbit


class Load:
    """Events that are published in the background during a test."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._stop = threading.Event()
        self.published: list[str] = []

    def run(self) -> None:
        while not self._stop.wait(0.01):
            first = len(self.published)
            events = [Event(type="a.b", id=f"n{number}") for number in range(first, first + 5)]
            self._bus.publish_many(events)
            self.published += [event.id for event in events]

    def more(self, count: int) -> None:
        """Wait until *count* more events are published."""
        wanted = len(self.published) + count
        eventually(lambda: len(self.published) >= wanted, "publishing continues")

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


class Site:
    """A healthy bus, RabbitMQ, and the messages that were dispatched."""

    def __init__(self, bus: EventBus, client: Redis, node: RabbitNode, rabbit: Rabbit) -> None:
        self.bus = bus
        self.node = node
        self.rabbit = rabbit
        self.load = Load(bus)
        self._client = client
        self._keys = Keys(bus.settings.channel_prefix)

    def idle(self) -> bool:
        """Return whether the whole journal is dispatched and acknowledged."""
        (group,) = self._client.xinfo_groups(self._keys.journal)
        return bool(group["pending"] == 0 and group["lag"] == 0)

    def pending(self) -> int:
        """Return the number of pending entries."""
        return int(self._client.xpending(self._keys.journal, "tests")["pending"])

    def has_letters(self) -> bool:
        return bool(self._client.exists(self._keys.dead("tests")))

    def published(self) -> set[str]:
        """Return the tasks of all published events."""
        return {f"t.all {event_id}" for event_id in self.load.published}


@pytest.fixture
def site(bus: EventBus, client: Redis, node: RabbitNode, rabbit: Rabbit) -> Site:
    return Site(bus, client, node, rabbit)


def errors(subscriber: Subscriber) -> int:
    return int(subscriber.info().get("errors", 0))


@pytest.mark.parametrize("end", [RabbitNode.stop, RabbitNode.kill], ids=["stopped", "killed"])
def test_a_restart_under_load(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    site: Site,
    rabbit_app: Celery,
    end: Callable[[RabbitNode], None],
) -> None:
    """After a restart, confirmed messages are still queued and the others are sent; no dead letter is written."""
    register_handlers("t.all")
    subscriber = start_subscriber(app=rabbit_app)
    with site.load.running():
        site.load.more(200)
        end(site.node)
        eventually(lambda: errors(subscriber) >= 2, "dispatch fails and is retried")
        site.load.more(50)
        site.node.start()
        site.load.more(100)
    eventually(site.idle, "all are dispatched")
    tasks = site.rabbit.tasks()
    assert set(tasks) == site.published()
    assert not site.has_letters()


def test_a_memory_alarm_under_load(
    register_handlers: Callable[..., None], start_subscriber: StartSubscriber, site: Site, rabbit_app: Celery
) -> None:
    """During a memory alarm, events stay in the journal and a stop is fast; then each message is queued once."""
    register_handlers("t.all")
    subscriber, other = start_subscriber(app=rabbit_app), start_subscriber("two", app=rabbit_app)
    with site.load.running():
        site.load.more(100)
        site.node.alarm(on=True)
        eventually(
            lambda: "short of memory or disk" in subscriber._dispatch.problem,
            "the health check reports why dispatch fails",
        )
        eventually(lambda: errors(other) > 0, "the other subscriber fails too")
        site.load.more(50)
        site.node.alarm(on=False)
        site.load.more(50)
    eventually(site.idle, "all are dispatched")
    assert site.rabbit.tasks() == Counter(site.published())
    site.node.alarm(on=True)
    site.bus.publish("a.b", id="last")
    eventually(lambda: subscriber._dispatch.problem or other._dispatch.problem, "one of them has the event")
    before = time.monotonic()
    subscriber.stop()
    other.stop()
    assert time.monotonic() - before < 8, "neither hangs"


@pytest.mark.parametrize("how", ["frozen", "blackholed"])
def test_a_broker_that_hangs(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    site: Site,
    how: str,
) -> None:
    """Dispatch fails in time and resumes when the broker does; a stop in between is fast and acknowledges nothing."""
    register_handlers("t.all")
    with (
        Proxy(site.node.port) as proxy,
        Celery("tests", broker=site.rabbit.url_at(proxy.port), set_as_current=False) as app,
    ):
        subscriber = start_subscriber(app=app)
        site.bus.publish("a.b", id="before")
        eventually(lambda: site.rabbit.length() == 1, "the first event is dispatched")
        if how == "frozen":
            site.node.freeze()
        else:
            proxy.blackhole()
        site.bus.publish("a.b", id="meanwhile")
        eventually(lambda: "did not confirm 1 messages" in subscriber._dispatch.problem, "dispatch fails")
        assert not site.idle()
        if how == "frozen":
            site.node.thaw()
        else:
            proxy.heal()
        eventually(site.idle, "all are dispatched")
        assert set(site.rabbit.tasks()) == {"t.all before", "t.all meanwhile"}
        if how == "frozen":
            site.node.freeze()
        else:
            proxy.blackhole()
        site.bus.publish("a.b", id="last")
        eventually(site.pending, "the event is pending")
        before = time.monotonic()
        subscriber.stop()
        assert time.monotonic() - before < 9, "a subscriber waits 8 s for its threads"
        assert site.pending() == 1


def test_connections_cut_under_load(
    register_handlers: Callable[..., None], start_subscriber: StartSubscriber, site: Site
) -> None:
    """No event is lost; only messages whose confirms were lost are duplicated."""
    register_handlers("t.all")
    with (
        Proxy(site.node.port) as proxy,
        Celery("tests", broker=site.rabbit.url_at(proxy.port), set_as_current=False) as app,
    ):
        subscriber = start_subscriber(app=app)
        with site.load.running():
            for _ in range(6):
                site.load.more(50)
                so_far = errors(subscriber)
                eventually(lambda so_far=so_far: proxy.cut() or errors(subscriber) > so_far, "the cut is noticed")
        eventually(site.idle, "all are dispatched")
        assert proxy.done["cut"] >= 6
        tasks = site.rabbit.tasks()
        assert set(tasks) == site.published()
        assert tasks.total() < len(tasks) * 1.5
        subscriber.stop()

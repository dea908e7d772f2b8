"""RabbitMQ away, restarted, killed, short of memory or hanging under load: nothing is lost, nothing hangs."""

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
from bridge.keys import Keys
from bridge.subscriber import Subscriber
from tests.conftest import Start, eventually
from tests.faults.proxy import Proxy
from tests.rabbitmq.conftest import Rabbit
from tests.rabbitmq.node import RabbitNode


class Load:
    """Events that are published while the test does something else."""

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
        """Wait until *count* more are published."""
        wanted = len(self.published) + count
        eventually(lambda: len(self.published) >= wanted, "publishing goes on")

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


@pytest.fixture
def load(bus: EventBus) -> Load:
    return Load(bus)


def errors(subscriber: Subscriber) -> int:
    return int(subscriber.info().get("errors", 0))


def idle(client: Redis, prefix: str) -> bool:
    """Whether all of the journal is dispatched and acknowledged."""
    (group,) = client.xinfo_groups(Keys(prefix).journal)
    return bool(group["pending"] == 0 and group["lag"] == 0)


@pytest.mark.parametrize("end", [RabbitNode.stop, RabbitNode.kill], ids=["stopped", "killed"])
def test_a_restart_under_load(
    use: Callable[..., None],
    start: Start,
    load: Load,
    node: RabbitNode,
    rabbit: Rabbit,
    rabbit_app: Celery,
    client: Redis,
    prefix: str,
    end: Callable[[RabbitNode], None],
) -> None:
    """What RabbitMQ confirmed is there afterwards, the rest is sent then; no dead letter is written."""
    use("t.all")
    subscriber = start(app=rabbit_app)
    with load.running():
        load.more(200)
        end(node)
        eventually(lambda: errors(subscriber) >= 2, "dispatch fails and is tried again")
        load.more(50)
        node.start()
        load.more(100)
    eventually(lambda: idle(client, prefix), "all are dispatched")
    tasks = rabbit.tasks()
    assert set(tasks) == {f"t.all {event_id}" for event_id in load.published}
    assert not client.exists(Keys(prefix).dead("tests"))


def test_a_memory_alarm_under_load(
    use: Callable[..., None],
    start: Start,
    load: Load,
    node: RabbitNode,
    rabbit: Rabbit,
    rabbit_app: Celery,
    client: Redis,
    prefix: str,
) -> None:
    """The journal keeps, health says why, a stop is quick; after the alarm each message is there once."""
    use("t.all")
    subscriber, other = start(app=rabbit_app), start("two", app=rabbit_app)
    with load.running():
        load.more(100)
        node.alarm(on=True)
        eventually(lambda: "short of memory or disk" in subscriber._trouble(), "it says why dispatch fails")
        eventually(lambda: errors(other) > 0, "the other fails too")
        load.more(50)
        node.alarm(on=False)
        load.more(50)
    eventually(lambda: idle(client, prefix), "all are dispatched")
    assert rabbit.tasks() == Counter(f"t.all {event_id}" for event_id in load.published)
    node.alarm(on=True)
    load._bus.publish("a.b", id="last")
    eventually(lambda: subscriber._trouble() or other._trouble(), "one of them has it")
    before = time.monotonic()
    subscriber.stop()
    other.stop()
    assert time.monotonic() - before < 8, "neither is left behind"


@pytest.mark.parametrize("how", ["frozen", "blackholed"])
def test_a_broker_that_hangs(
    use: Callable[..., None],
    start: Start,
    bus: EventBus,
    node: RabbitNode,
    rabbit: Rabbit,
    client: Redis,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """Dispatch fails within its bound and goes on afterwards, a stop meanwhile is quick and acknowledges nothing."""
    monkeypatch.setattr("bridge.confirms.CONFIRM_TIMEOUT_S", 2.0)
    use("t.all")
    with Proxy(node.port) as proxy, Celery("tests", broker=rabbit.url_at(proxy.port), set_as_current=False) as app:
        subscriber = start(app=app)
        bus.publish("a.b", id="before")
        eventually(lambda: rabbit.length() == 1, "the first is dispatched")
        if how == "frozen":
            node.freeze()
        else:
            proxy.blackhole()
        bus.publish("a.b", id="meanwhile")
        eventually(lambda: "did not confirm 1 messages" in subscriber._trouble(), "dispatch fails")
        assert not idle(client, prefix)
        if how == "frozen":
            node.thaw()
        else:
            proxy.heal()
        eventually(lambda: idle(client, prefix), "all are dispatched")
        assert set(rabbit.tasks()) == {"t.all before", "t.all meanwhile"}
        if how == "frozen":
            node.freeze()
        else:
            proxy.blackhole()
        bus.publish("a.b", id="last")
        eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"], "it is under way")
        before = time.monotonic()
        subscriber.stop()
        assert time.monotonic() - before < 8
        assert client.xpending(Keys(prefix).journal, "tests")["pending"] == 1


def test_connections_cut_under_load(
    use: Callable[..., None],
    start: Start,
    load: Load,
    node: RabbitNode,
    rabbit: Rabbit,
    client: Redis,
    prefix: str,
) -> None:
    """Nothing is lost; twice there is what RabbitMQ took and could not confirm any more."""
    use("t.all")
    with Proxy(node.port) as proxy, Celery("tests", broker=rabbit.url_at(proxy.port), set_as_current=False) as app:
        subscriber = start(app=app)
        with load.running():
            for _ in range(6):
                load.more(50)
                so_far = errors(subscriber)
                eventually(lambda so_far=so_far: proxy.cut() or errors(subscriber) > so_far, "a cut is noticed")
        eventually(lambda: idle(client, prefix), "all are dispatched")
        assert proxy.done["cut"] >= 6
        tasks = rabbit.tasks()
        assert set(tasks) == {f"t.all {event_id}" for event_id in load.published}
        assert tasks.total() < len(tasks) * 1.5
        subscriber.stop()

"""The queues of a group as one of its subscribers measures them, and what it logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings
from bridge.broker import broker_id
from bridge.handlers import Registry
from bridge.storage import Presence, QueueStatus, Storage, read_status
from bridge.storage.in_flight import InFlightTask
from bridge.subscriber.members import Members
from bridge.subscriber.monitoring.queue_monitor import QueueMonitor
from bridge.subscriber.monitoring.queue_states import Limits
from tests.handlers import HANDLERS
from tests.support.apps import StartSubscriber, make_app
from tests.support.scrape import Scrape
from tests.support.waiting import eventually

LOGGER = "bridge.subscriber.monitoring.queue_monitor"
#: Every problem is one at once, and is logged again at once.
AT_ONCE = Limits(alone_s=0, still_s=0, quiet_s=0)
PATIENT = Limits()


class Group:
    """A group with the handlers t.exact and t.own, whose queues are measured on request."""

    def __init__(self, app: Celery, settings: BridgeSettings, client: Redis, *names: str) -> None:
        app.finalize()
        self.app = app
        self.settings = settings
        self.storage = Storage(client, settings)
        self.registry = Registry()
        for name in names or ("t.exact", "t.own"):
            self.registry.add(HANDLERS[name])
        client.xgroup_create(self.storage.keys.journal, settings.group, mkstream=True)
        self.storage.presence.report(Presence(f"of {settings.group}", reports_queues=True))

    def measure(self, limits: Limits = PATIENT, name: str = "one") -> dict[str, QueueStatus]:
        """Measure once; return what every subscriber reports then."""
        members = Members(self.storage, self.registry, name)
        monitor = QueueMonitor(self.app, self.storage, self.registry, members, limits)
        monitor.step()
        monitor.close()
        return self.shown()

    def shown(self) -> dict[str, QueueStatus]:
        group = read_status(self.storage).group(self.settings.group)
        assert group is not None
        return {queue.name: queue for queue in group.queues or ()}


@pytest.fixture
def group(app: Celery, settings: BridgeSettings, client: Redis) -> Group:
    return Group(app, settings, client)


@pytest.fixture
def push(client: Redis, prefix: str) -> Callable[..., Any]:
    def push_to(queue: str, count: int = 1) -> None:
        client.lpush(f"broker:{prefix}{queue}", *[f"{queue} {number}" for number in range(count)])

    return push_to


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """Return level and action of the lines about queues since the last call."""
    caplog.set_level(logging.INFO, LOGGER)

    def taken() -> list[tuple[str, str]]:
        found = [(record.levelname, record.action) for record in caplog.records if record.name == LOGGER]  # type: ignore[attr-defined]
        caplog.clear()
        return found

    return taken


def test_a_queue_without_a_worker(
    group: Group, push: Callable[..., Any], client: Redis, prefix: str, lines: Callable[[], list[tuple[str, str]]]
) -> None:
    """A queue that no worker takes from is reported, until one does; the other queue of the handlers is fine."""
    group.storage.workers.report("w1", broker_id(group.app), ["celery"])
    push("own", 6)
    shown = group.measure(AT_ONCE)
    assert (shown["celery"].messages, shown["celery"].consumers, shown["celery"].problem) == (0, 1, "")
    assert (shown["own"].messages, shown["own"].consumers, shown["own"].problem) == (6, 0, "no_consumer")
    assert lines() == [("WARNING", "queue_without_consumer")]
    group.measure(AT_ONCE)
    assert lines() == []
    group.storage.workers.report("w2", broker_id(group.app), ["own"])
    client.delete(f"broker:{prefix}own")
    assert group.measure(AT_ONCE)["own"].problem == ""
    assert lines() == [("INFO", "queue_moves_again")]


def test_what_the_warnings_say(group: Group, push: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """Each warning says what happened, that nothing is lost, and which command helps, quoted for a shell."""
    group.settings.routes.update({"dream.created": {"queue": "it's"}})
    group.storage.workers.report("w1", broker_id(group.app), ["it's"])
    push("it's", 2)
    push("own")
    group.measure(AT_ONCE)
    stalled, alone = sorted(caplog.messages)[::-1][:2]
    assert stalled.startswith(
        "2 messages wait in queue it's, and none has left it for 0 s, though 1 worker takes from it"
    )
    assert alone.startswith("1 message waits in queue own, and no worker takes tasks from it. Nothing is lost: ")
    assert alone.endswith("Start one: celery -A APP worker -Q own")
    assert (
        "Nothing is lost. The workers are busy with long tasks, or hang: see celery -A APP inspect active." in stalled
    )
    assert stalled.endswith("""-Q 'it'"'"'s'""")


def test_workers_of_other_groups(group: Group, app: Celery, client: Redis, prefix: str) -> None:
    """Workers of another group count if they have the same broker, and thus the same queue; otherwise they do not."""
    other = Group(app, group.settings.model_copy(update={"group": "other"}), client)
    other.storage.workers.report("w1", broker_id(app), ["own"])
    other.storage.workers.report("w2", "another broker", ["celery"])
    assert {name: queue.consumers for name, queue in group.measure().items()} == {"own": 1, "celery": 0}
    assert {name: queue.consumers for name, queue in other.measure().items()} == {"own": 1, "celery": 1}


def test_a_subscriber_of_an_earlier_version(group: Group, push: Callable[..., Any]) -> None:
    """While it runs, the consumers of a queue without reports are unknown, as its worker may take from it."""
    push("own")
    assert group.measure(AT_ONCE)["own"].consumers == 0
    group.storage.presence.report(Presence("old"))
    own = group.measure(AT_ONCE)["own"]
    assert (own.consumers, own.problem) == (None, "stalled")


def test_queues_of_the_ledger(group: Group, push: Callable[..., Any]) -> None:
    """A queue that tasks in flight were sent to is measured, though no handler is sent to it any more."""
    push("renamed")
    group.storage.ledger.acknowledge_sent([], [InFlightTask("t.exact", "e", "1-1", "renamed").entry("task")])
    assert group.measure()["renamed"].messages == 1


def test_names_are_limited(group: Group) -> None:
    """At most 100 queues are reported, those with messages first, and none with a long name."""
    names = [f"tenant-{number:03}" for number in range(120)] + ["x" * 201]
    tasks = [InFlightTask("t.exact", "e", "1-1", name).entry(f"task {name}") for name in names]
    group.storage.ledger.acknowledge_sent([], tasks)
    for _ in range(20):  # each round looks up a hundred tasks
        shown = group.measure()
    assert len(shown) == 100
    assert not any(len(name) > 200 for name in shown)


def test_a_full_queue(app: Celery, settings: BridgeSettings, client: Redis, push: Callable[..., Any]) -> None:
    """A queue with max_queue_length messages is reported as full."""
    group = Group(app, settings.model_copy(update={"max_queue_length": 5}), client)
    push("own", 5)
    push("celery", 4)
    assert {name: queue.full for name, queue in group.measure().items()} == {"own": True, "celery": False}


def test_one_subscriber_measures_for_all(group: Group, listen: Any) -> None:
    """While one is elected, the others send one command each; what it has found is there for all."""
    group.measure(name="one")
    members = Members(group.storage, group.registry, "leader")
    leader = QueueMonitor(group.app, group.storage, group.registry, members)
    leader.step()
    sent, _ = listen(lambda: group.measure(name="two"))
    assert [text.split()[0] for text in sent if "queue-leader" in text] == ["EVALSHA", "EVALSHA"]  # asks, and resigns
    assert not any("queue-sample" in text and text.startswith("SET") for text in sent)
    leader.close()


def test_subscribers_with_different_handlers(app: Celery, settings: BridgeSettings, client: Redis) -> None:
    """If the subscribers have different handlers, the queues of all of them are reported."""
    one = Group(app, settings, client, "t.exact")
    one.measure(name="one")
    one.registry = Registry()
    one.registry.add(HANDLERS["t.limited"])
    assert set(one.measure(name="two")) == {"celery", "limited"}


def test_an_unreachable_broker(settings: BridgeSettings, client: Redis, prefix: str) -> None:
    """While the broker does not respond, there is no new sample, and no error."""
    with make_app("redis://127.0.0.1:1/0", prefix) as app:
        assert Group(app, settings, client).measure() == {}


def test_metrics(
    register_handlers: Callable[..., None], start_subscriber: StartSubscriber, scrape: Scrape, port: int
) -> None:
    """A subscriber measures the queues from its start and reports them by group and queue."""
    register_handlers("t.own")
    start_subscriber(metrics_port=port)
    page = eventually(lambda: (got := scrape()).value("bridge_queue_messages") is not None and got, "queues", 10)
    for name in ("messages", "oldest_seconds", "consumers", "stalled_seconds"):
        assert page.value(f"bridge_queue_{name}", group="tests", queue="own") == 0.0

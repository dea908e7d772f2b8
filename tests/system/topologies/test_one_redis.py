"""Bus and broker on one Redis behind Sentinels: tasks are sent in one transaction with the journal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery
from kombu.simple import SimpleQueue

from bridge import BridgeSettings, BusUnavailable, EventBus
from bridge.subscriber.subscriber import Subscriber
from tests.support.apps import StartSubscriber
from tests.support.servers.sentinels import Replicated
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def servers() -> Iterator[Replicated]:
    with Replicated() as running:
        yield running


@pytest.fixture
def settings(servers: Replicated, prefix: str) -> BridgeSettings:
    return BridgeSettings.load(redis_url=servers.url, channel_prefix=prefix, group="tests")


@pytest.fixture
def app(servers: Replicated, prefix: str) -> Iterator[Celery]:
    urls = ";".join(f"sentinel://127.0.0.1:{sentinel.port}/0" for sentinel in servers.sentinels)
    with Celery("tests", broker=urls, set_as_current=False) as made:
        made.conf.broker_transport_options = {
            "master_name": servers.service,
            "global_keyprefix": f"broker:{prefix}",
            "socket_timeout": 2.0,
        }
        yield made


def publish(bus: EventBus, event_id: str) -> object:
    try:
        return bus.publish("dream.created", id=event_id)
    except BusUnavailable:
        return None


def take(app: Celery) -> list[str]:
    """Let Celery's own client take all queued messages; return the ids of their events."""
    taken = []
    with app.connection_for_read() as connection, SimpleQueue(connection, "celery") as queue, suppress(queue.Empty):
        while True:
            message = queue.get(block=False)
            message.ack()
            taken.append(json.loads(message.body)[0][0]["id"])
    return taken


def test_tasks_are_sent_with_the_journal(
    register_handlers: Any,
    start_subscriber: StartSubscriber,
    app: Celery,
    bus: EventBus,
    servers: Replicated,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before, during and after a failover, tasks are sent once, in a form that Celery reads through its Sentinels."""
    register_handlers("t.exact")
    caplog.set_level("INFO", logger="bridge")
    subscriber: Subscriber = start_subscriber(app=app)
    assert "exactly once, in one transaction with the journal" in caplog.text
    bus.publish("dream.created", id="before")
    eventually(lambda: subscriber.counters.snapshot().get("dispatched") == 1, "it is dispatched")
    old = servers.primary()
    old.kill()
    servers.wait_for_failover(old)
    eventually(lambda: publish(bus, "after"), "the new primary accepts events", 30)
    eventually(lambda: subscriber.counters.snapshot().get("dispatched") == 2, "it is dispatched")
    assert Counter(take(app)) == {"before": 1, "after": 1}

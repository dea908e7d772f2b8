"""Dispatch if bus and broker are one Redis: exactly once, despite faults of the network and of the queue."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber, make_app
from tests.support.backlog import Backlog
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.waiting import eventually


@pytest.fixture
def backlog(bus: EventBus, client: Redis, settings: BridgeSettings, queues: Queues) -> Backlog:
    return Backlog(bus, client, settings, queues)


def test_a_backlog_goes_out_in_order(register_handlers, start_subscriber: StartSubscriber, backlog: Backlog) -> None:
    """Three thousand events become one message each, in order, and are acknowledged and added to the ledger."""
    register_handlers("t.all")
    backlog.publish(3000)
    subscriber = start_subscriber()
    backlog.all_once()
    assert backlog.sent() == backlog.ids()
    eventually(lambda: subscriber.info().get("dispatched") == 3000, "all tasks are counted")
    assert "errors" not in subscriber.info()


def test_a_lone_event_does_not_wait(register_handlers, start_subscriber: StartSubscriber, backlog: Backlog) -> None:
    """Single events are dispatched immediately: five of them take less time than one blocking read."""
    register_handlers("t.all")
    start_subscriber(block_ms=2000)
    began = time.monotonic()
    for number in range(5):
        backlog.publish(1, f"lone{number}-")
        eventually(lambda count=number + 1: backlog.queues.length() == count, "the message is queued")
        eventually(lambda: not backlog.pending(), "the entry is acknowledged")
    assert time.monotonic() - began < 2
    backlog.all_once()


FAULTS = {
    "the reply is lost": (lambda proxy: proxy.drop_reply(b"EXEC"), "reply dropped"),
    "the request is cut": (lambda proxy: proxy.cut_after(b"EXEC", 2000), "request cut"),
    "the request is lost": (lambda proxy: proxy.keep_request(b"EXEC"), "request kept"),
}


@pytest.mark.parametrize(("fault", "what"), FAULTS.values(), ids=FAULTS)
def test_a_transaction_goes_wrong(
    register_handlers,
    start_subscriber: StartSubscriber,
    proxy: Proxy,
    far_app: Celery,
    backlog: Backlog,
    fault: Any,
    what: str,
) -> None:
    """If the subscriber does not know whether a transaction was executed, each message is in the queue once."""
    register_handlers("t.all")
    subscriber = start_subscriber(app=far_app, redis_url=proxy.url)
    backlog.publish(10, "before")
    backlog.all_once()
    fault(proxy)
    backlog.publish(300)
    eventually(lambda: proxy.done[what] == 1, what)
    eventually(lambda: subscriber.info().get("errors"), "the error is counted")
    backlog.all_once()


def test_a_transaction_comes_late(
    register_handlers, start_subscriber: StartSubscriber, proxy: Proxy, far_app: Celery, backlog: Backlog
) -> None:
    """A request that arrives after its entries were read again and sent has no effect."""
    register_handlers("t.all")
    start_subscriber(app=far_app, redis_url=proxy.url)
    proxy.keep_request(b"EXEC")
    backlog.publish(300)
    eventually(lambda: proxy.done["request kept"] == 1, "the proxy holds the request back")
    backlog.all_once()
    proxy.deliver()
    eventually(lambda: proxy.done["late reply"], "the request was delivered and answered")
    backlog.all_once()


def test_entries_claimed_under_a_subscriber(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, backlog: Backlog
) -> None:
    """While other consumers keep claiming entries in dispatch, each event is still sent once."""
    register_handlers("t.all")
    subscriber = start_subscriber(batch_size=20, claim_idle_s=0.1, maintenance_interval_s=0.05)
    storage = Storage(backlog.client, settings)
    taken, enough = 0, threading.Event()

    def steal() -> None:
        nonlocal taken
        while not enough.is_set():
            taken += storage.consumer("thief").claim(0, b"0-0", 50).taken
            taken += storage.consumer(subscriber.name).claim(0, b"0-0", 50).taken
            subscriber._dispatch._dispatcher.reread_pending()
            if taken >= 500:
                enough.set()

    thread = threading.Thread(target=steal)
    thread.start()
    try:
        rounds = itertools.count()
        eventually(lambda: backlog.publish(200, f"round{next(rounds)}-") or enough.is_set(), "500 entries were claimed")
    finally:
        enough.set()
        thread.join()
    backlog.all_once()


def test_something_else_in_place_of_the_queue(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, backlog: Backlog
) -> None:
    """While the queue key is not a list, nothing is acknowledged or in the ledger; then each event is sent once."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    queue = f"broker:{prefix}celery"
    assert client.set(queue, "x")
    backlog.publish(100)
    eventually(lambda: subscriber.info().get("errors", 0) >= 2, "dispatch is retried")
    assert backlog.unacknowledged()
    assert backlog.ledger.size() == 0
    assert client.get(queue) == b"x"
    assert client.delete(queue)
    backlog.all_once()
    assert "dead_lettered" not in subscriber.info()


def test_two_subscribers_on_one_backlog(register_handlers, start_subscriber: StartSubscriber, backlog: Backlog) -> None:
    """Two subscribers that share a growing backlog send each event exactly once."""
    register_handlers("t.all")
    backlog.publish(1500)
    start_subscriber("a")
    start_subscriber("b")
    backlog.publish(1500, "m")
    backlog.all_once()


def test_a_stop_within_a_backlog(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, backlog: Backlog
) -> None:
    """A subscriber that stops finishes what it has read; the next one dispatches the rest, and nothing twice."""
    register_handlers("t.all")
    backlog.publish(5000)
    first = start_subscriber("first", enable_pubsub=False, batch_size=10)
    eventually(backlog.queues.length, "the first subscriber dispatches")  # it is ready before its first read
    first.stop()
    sent = backlog.queues.length()
    assert 0 < sent < 5000
    assert backlog.ids()[:sent] == backlog.sent()
    assert not backlog.pending()
    assert not client.xinfo_consumers(backlog.journal, "tests")
    start_subscriber("second", enable_pubsub=False)
    backlog.all_once()


def test_a_handler_that_celery_must_send_to(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, backlog: Backlog
) -> None:
    """An event with a stamped handler and one whose messages Celery creates is sent to both."""
    register_handlers("t.all", "t.picky")
    start_subscriber()
    bus.publish_many([Event(type="a.b", id=f"n{number}", payload={"name": "x"}) for number in range(50)])
    eventually(lambda: queues.length() == 100, "all messages are queued")
    assert queues.tasks() == {f"{task} a.b n{number}": 1 for task in ("t.all", "t.picky") for number in range(50)}
    eventually(lambda: not backlog.pending(), "all entries are acknowledged")
    assert backlog.ledger.size() == 100


def test_stamped_and_published_in_one_batch(
    register_handlers, start_subscriber: StartSubscriber, backlog: Backlog
) -> None:
    """Messages that are routed through bindings are published by the broker's client, all others are stamped."""
    register_handlers("t.all")
    backlog.bus.publish_many([Event(type="a.b" if number % 3 else "bound.b", id=f"n{number}") for number in range(300)])
    start_subscriber(routes={"bound.*": {"queue": "celery", "exchange": "celery", "routing_key": "celery"}})
    backlog.all_once()


@pytest.mark.parametrize(("database", "how"), [("0", "exactly once"), ("1", "at least once")])
def test_the_log_says_how_tasks_are_sent(
    register_handlers,
    start_subscriber: StartSubscriber,
    server: RedisServer,
    prefix: str,
    database: str,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A subscriber logs at its start whether it sends tasks exactly once or at least once."""
    caplog.set_level(logging.INFO, "bridge")
    register_handlers("t.all")
    with make_app(server.url.removesuffix("0") + database, prefix) as app:
        start_subscriber(app=app)
        assert f"tasks are sent {how}" in caplog.text

"""Subscribers, Redis and the broker are killed or unavailable under load, and no event is lost."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import threading
import time
from collections import Counter

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber, make_app
from tests.support.processes import Processes
from tests.support.queues import Queues
from tests.support.waiting import eventually


def events_of(queues: Queues) -> Counter[str]:
    """Count the queued messages by event id."""
    return Counter(json.loads(base64.b64decode(message["body"]))[0][0]["id"] for message in queues.messages())


@pytest.mark.timeout(120)
def test_subscribers_killed_at_random_moments_lose_nothing(
    processes: Processes, client: Redis, prefix: str, server: RedisServer, queues: Queues
) -> None:
    """Every event is dispatched while one of two subscribers is repeatedly killed with SIGKILL under load."""
    seed = random.randrange(10**6)  # shown by pytest when the test fails
    moments = random.Random(seed)
    fast = {"BRIDGE_CLAIM_IDLE_S": "1", "BRIDGE_MAINTENANCE_INTERVAL_S": "0.3", "BRIDGE_BATCH_SIZE": "50"}
    steady = processes.celery("bus", "subscribe", name="steady", **fast)
    published: set[str] = set()
    stop = threading.Event()

    def publish() -> None:
        with EventBus(redis_url=server.url, channel_prefix=prefix) as bus:
            while not stop.is_set():
                number = len(published)
                batch = [Event(type="dream.made", id=f"n{number + offset}") for offset in range(20)]
                bus.publish_many(batch[:10])
                for event in batch[10:]:  # like a program that knows only the wire format
                    client.set(f"{prefix}event:{event.id}", event.encode(), ex=3600)
                    client.publish(prefix + event.type, event.encode())
                published.update(event.id for event in batch)
                stop.wait(0.005)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for kill in range(6):
            victim = processes.celery("bus", "subscribe", name=f"victim{kill}", **fast)
            log = f"victim{kill}"
            eventually(
                lambda name=log: "Subscriber subscribe@" in processes.log(name), "the subscriber has started", 30
            )
            stop.wait(moments.uniform(0, 0.8))
            victim.send_signal(signal.SIGKILL)
            assert victim.wait(10) == -signal.SIGKILL
            if kill == 3:  # for a while, no subscriber is running
                steady.send_signal(signal.SIGKILL)
                steady.wait(10)
                steady = processes.celery("bus", "subscribe", name="steady2", **fast)
    finally:
        stop.set()
        publisher.join()
    assert len(published) > 500

    def settled() -> bool:
        group = client.xinfo_groups(Keys(prefix).journal)[0]
        return group["pending"] == 0 and group["lag"] == 0 and set(events_of(queues)) == published

    eventually(settled, f"all {len(published)} events are dispatched (seed {seed})", 40)
    task_ids = {message["headers"]["id"] for message in queues.messages()}
    assert len(task_ids) == len(published), "a repeated dispatch has the same task id"


def test_a_broker_that_is_away_delays_and_loses_nothing(
    register_handlers,
    start_subscriber: StartSubscriber,
    server: RedisServer,
    own_server: RedisServer,
    client: Redis,
    prefix: str,
) -> None:
    """While the broker is down, the events stay in the journal without dead letters; afterwards all are dispatched."""
    register_handlers("t.all")
    subscriber = start_subscriber(app=make_app(own_server.url, prefix))
    with EventBus(redis_url=server.url, channel_prefix=prefix) as bus, Redis.from_url(own_server.url) as broker:
        bus.publish("a.b", id="before")
        eventually(lambda: broker.llen(f"broker:{prefix}celery") == 1, "the first event is dispatched")
        own_server.kill()
        bus.publish_many([Event(type="a.b", id=f"n{number}") for number in range(300)])
        eventually(lambda: subscriber.info().get("errors", 0) >= 2, "dispatch fails and is retried")
        assert client.xpending(Keys(prefix).journal, "tests")["pending"] > 0
        own_server.start()
        eventually(lambda: broker.llen(f"broker:{prefix}celery") == 301, "all are dispatched")
    assert not client.exists(Keys(prefix).dead("tests"))


def test_stop_is_bounded_while_the_broker_hangs(
    register_handlers,
    start_subscriber: StartSubscriber,
    server: RedisServer,
    own_server: RedisServer,
    client: Redis,
    prefix: str,
) -> None:
    """While the broker accepts connections and never replies, stop() returns in time and nothing is acknowledged."""
    register_handlers("t.all")
    subscriber = start_subscriber(app=make_app(own_server.url, prefix))
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        with EventBus(redis_url=server.url, channel_prefix=prefix) as bus:
            bus.publish("a.b", id="x")
        eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"] == 1, "the event is pending")
        before = time.monotonic()
        subscriber.stop()
        assert time.monotonic() - before < 11
        assert client.xpending(Keys(prefix).journal, "tests")["pending"] == 1
    finally:
        os.kill(own_server.pid, signal.SIGCONT)


def test_redis_killed_under_load_loses_no_published_event(
    register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer, prefix: str
) -> None:
    """With ``appendfsync always``, kill -9 of Redis under load loses no published event, and subscribers recover."""
    register_handlers("t.all")
    subscriber = start_subscriber(app=make_app(own_server.url, prefix), redis_url=own_server.url)
    published: list[str] = []
    with EventBus(redis_url=own_server.url, channel_prefix=prefix, publish_timeout_s=60) as bus:

        def publish() -> None:
            for number in range(300):
                published.append(bus.publish("a.b", id=f"n{number}").event.id)

        publisher = threading.Thread(target=publish)
        publisher.start()
        for reached in (50, 150):
            eventually(lambda many=reached: len(published) >= many, "publishing continues")
            own_server.kill()
            own_server.start()
        publisher.join()
    assert len(published) == 300
    with Redis.from_url(own_server.url) as broker:
        queues = Queues(broker, prefix)
        eventually(lambda: set(events_of(queues)) == set(published), "all are dispatched", 30)
        assert broker.xlen(Keys(prefix).journal) == 300
    assert subscriber.info()["errors"] > 0


def test_a_broker_short_of_memory_makes_progress(
    register_handlers,
    start_subscriber: StartSubscriber,
    server: RedisServer,
    own_server: RedisServer,
    client: Redis,
    prefix: str,
) -> None:
    """If the broker has memory for only a part of a batch, batches shrink; events are dispatched with few copies."""
    register_handlers("t.all")
    start_subscriber(app=make_app(own_server.url, prefix))
    consumed: list[str] = []
    with EventBus(redis_url=server.url, channel_prefix=prefix) as bus, Redis.from_url(own_server.url) as broker:
        own_server_used = int(broker.info("memory")["used_memory"])
        broker.config_set("maxmemory", own_server_used + 1_000_000)
        bus.publish_many([Event(type="a.b", id=f"n{number}", payload="x" * 8000) for number in range(400)])

        def consume() -> bool:
            while message := broker.rpop(f"broker:{prefix}celery"):
                consumed.append(json.loads(message)["headers"]["id"])
            return len(set(consumed)) == 400

        eventually(consume, "all are dispatched", 40)
    assert len(consumed) < 3 * 400


def test_while_the_broker_is_away_nothing_is_kept_twice(
    register_handlers,
    start_subscriber: StartSubscriber,
    own_server: RedisServer,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
) -> None:
    """An event that fails for one handler and waits for the broker for another gets one dead letter, counted once."""
    register_handlers("t.all", "t.chosen")
    broker = make_app(own_server.url, prefix)
    subscriber = start_subscriber(app=broker)
    own_server.kill()
    with EventBus(settings) as bus:
        bus.publish("a.b", {}, id="e")  # t.chosen requires payload["yes"]
    eventually(lambda: subscriber.info().get("errors", 0) >= 2, "dispatch is retried")
    assert Storage(client, settings).dead_letters.latest(10) == []
    own_server.start()
    eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"] == 0, "the event is dispatched")
    (letter,) = Storage(client, settings).dead_letters.latest(10)
    assert (letter.reason, letter.handler) == ("predicate_failed", "t.chosen")
    assert subscriber.info()["dead_lettered"] == 1

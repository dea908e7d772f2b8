"""Health over HTTP: the replies of a subscriber that works, that lacks a server, and that is stuck."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.handlers.handler import registry
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.monitoring import health
from bridge.subscriber.monitoring.health import Health
from bridge.telemetry.counters import Counters
from bridge.telemetry.liveness import Liveness
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.apps import StartSubscriber
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.scrape import Ask, problems, ready
from tests.support.waiting import eventually

#: Seconds until a change must be reported.
TOLD_S = 10


class Dispatch:
    """A stand-in for the dispatch of a subscriber."""

    problem = ""
    waiting_for = ""


@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_the_bus_is_away(
    register_handlers,
    start_subscriber: StartSubscriber,
    proxy: Proxy,
    bus: EventBus,
    ask: Ask,
    port: int,
    queues: Queues,
    fault: str,
) -> None:
    """An outage of the bus is reported within seconds with its reason; the process stays alive and recovers."""
    register_handlers("t.all")
    start_subscriber(redis_url=proxy.url, metrics_port=port)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    getattr(proxy, fault)()
    reason = f"Redis at redis://127.0.0.1:{proxy.port}/0: "
    eventually(lambda: reason in problems(ask), "the reason is reported", TOLD_S)
    assert ask("/healthz")[0] == 200
    status, metrics = ask("/metrics")
    assert status == 200
    assert "bridge_bus_up 0.0" in metrics
    assert "bridge_broker_up 1.0" in metrics
    assert "bridge_ready 0.0" in metrics
    assert "bridge_backlog_events" not in metrics, "old values would look like current ones"
    proxy.heal()
    eventually(lambda: ready(ask), "the subscriber is ready again", 20)
    bus.publish("a.b", id="after")
    eventually(lambda: queues.length() == 1, "the event is dispatched")
    assert "bridge_bus_up 1.0" in ask("/metrics")[1]


def test_readiness_while_redis_is_frozen(
    register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer, ask: Ask, port: int
) -> None:
    """A server that accepts connections but does not reply is reported as well."""
    register_handlers("t.all")
    start_subscriber(redis_url=own_server.url, metrics_port=port)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        assert "Redis at " in eventually(lambda: problems(ask), "the problem is reported", TOLD_S)
        assert ask("/healthz")[0] == 200
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    eventually(lambda: ready(ask), "the subscriber is ready again", 20)


def test_a_redis_that_was_killed_and_lost_its_password(
    register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer, ask: Ask, port: int
) -> None:
    """The reported reason is the current one and contains no password."""
    register_handlers("t.all")
    with Redis.from_url(own_server.url) as client:
        client.acl_setuser(
            "someone", enabled=True, passwords=["+s3cret"], keys=["*"], channels=["*"], commands=["+@all"]
        )
        start_subscriber(
            redis_url=own_server.url.replace("//", "//someone:s3cret@"), metrics_port=port, socket_timeout_s=5
        )
        eventually(lambda: ready(ask), "the subscriber is ready", 5)
        client.acl_setuser("someone", enabled=True, reset_passwords=True, passwords=["+other"])
        client.client_kill_filter(user="someone")
    text = eventually(lambda: "invalid username-password" in problems(ask) and problems(ask), "it is reported", TOLD_S)
    own_server.kill()
    text += eventually(lambda: "refused" in problems(ask) and problems(ask), "the outage is reported", TOLD_S)
    assert "s3cret" not in text + ask("/metrics")[1]


@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
def test_a_broker_is_waited_for_briefly(
    far_app: Celery,
    proxy: Proxy,
    client: Redis,
    settings: BridgeSettings,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A probe of the broker is short, regardless of the broker's own timeouts, and its result is cached briefly."""
    dead_letters = DeadLetterWriter(Storage(client, settings), Counters())
    checked = Health(far_app, settings, Liveness(), threading.Event(), Dispatch(), dead_letters)
    assert checked.broker() == ""
    getattr(proxy, fault)()
    assert checked.broker() == "", "the result is cached"
    monkeypatch.setattr(health, "_KEEP_BROKER_S", 0)
    begun_s = time.monotonic()
    assert checked.broker().startswith("broker: ")
    assert time.monotonic() - begun_s < 4


def test_a_full_queue_is_no_problem(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, ask: Ask, port: int
) -> None:
    """While dispatch waits for room in a queue, the subscriber is ready and reports what it waits for."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port, max_queue_length=1)
    bus.publish("a.b")
    eventually(lambda: queues.length() == 1 and ready(ask), "the queue is full")
    assert "bridge_dispatch_waiting 0.0" in ask("/metrics")[1]
    bus.publish("a.b")
    eventually(lambda: json.loads(ask("/readyz")[1])["waits"] == "waiting for room in queue celery", "it reports it", 5)
    assert ready(ask)
    metrics = ask("/metrics")[1]
    assert "bridge_dispatch_waiting 1.0" in metrics
    assert 'bridge_dispatch_backpressure_total{group="tests"} 0.0' not in metrics
    assert 'bridge_backlog_events{group="tests"} 1.0' in metrics


def test_a_deleted_group(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings, ask: Ask, port: int
) -> None:
    """A destroyed group is recreated and counted, and the subscriber is ready again."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    client.xgroup_destroy(Keys(settings.channel_prefix).journal, "tests")
    eventually(lambda: 'bridge_journal_lost_total{group="tests"} 1.0' in ask("/metrics")[1], "the loss is counted", 5)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)


def test_what_is_missing_before_it_is_ready(app: Celery, client: Redis, settings: BridgeSettings) -> None:
    """Each condition that a subscriber waits for after its start is a separate problem."""
    liveness, caught_up, dispatch = Liveness(), threading.Event(), Dispatch()
    dead_letters = DeadLetterWriter(Storage(client, settings), Counters())
    checked = Health(app, settings, liveness, caught_up, dispatch, dead_letters)

    def found() -> list[str]:
        checked._known.clear()
        return checked.problems()

    assert found() == ["the journal has no group tests yet"]
    client.xadd(Keys(settings.channel_prefix).journal, {"id": "e"})
    assert found() == ["the journal has no group tests yet"]
    Storage(client, settings).consumer("a").create_group("earliest")
    assert found() == ["not subscribed to the event channels yet"]
    liveness.mark("received")
    assert found() == ["still scanning the event keys for events that were missed before the start"]
    caught_up.set()
    assert found() == []
    dispatch.problem = "dispatch fails: so"
    assert found() == ["dispatch fails: so"]
    dispatch.problem = ""
    client.set(Keys(settings.channel_prefix).dead("tests"), "no stream")
    dead_letters.write(DeadLetter.of_message("json", "no JSON", "journal", b"x"))
    (problem,) = found()
    assert problem.startswith("Redis refuses dead letters: WRONGTYPE")
    checked.storage.client.close()


def test_a_subscription_that_died_in_silence(
    register_handlers, start_subscriber: StartSubscriber, proxy: Proxy, ask: Ask, port: int
) -> None:
    """A subscription without heartbeats is reported after two missed ones, and replaced by a new subscription."""
    register_handlers("t.all")
    start_subscriber(redis_url=proxy.url, metrics_port=port, heartbeat_interval_s=0.6)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    proxy.silence(b"SUBSCRIBE")
    assert proxy.done["silenced"] == 1
    eventually(lambda: problems(ask).startswith("nothing received on the event channels for "), "it is reported", 5)
    eventually(lambda: ready(ask), "the subscriber is ready again", 10)
    eventually(
        lambda: 'bridge_subscription_gaps_total{group="tests"} 1.0' in ask("/metrics")[1], "the gap is counted", 5
    )


def test_without_pubsub_nothing_is_listened_for(
    register_handlers, start_subscriber: StartSubscriber, ask: Ask, port: int
) -> None:
    """A subscriber that only reads the journal is ready without a subscription."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port, enable_pubsub=False)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    assert ask("/healthz")[0] == 200


def test_a_stuck_thread_is_no_health(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    ask: Ask,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a predicate blocks dispatch, /healthz reports the stuck thread."""
    monkeypatch.setattr(health, "_STUCK_S", 1.0)
    monkeypatch.setattr(health, "_STUCK_TIMEOUTS", 0)
    gate = threading.Event()
    register_handlers()
    registry.add(replace(HANDLERS["t.all"], where=lambda event: gate.wait(20)))
    start_subscriber(metrics_port=port)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    assert ask("/healthz")[0] == 200
    bus.publish("a.b")
    _, text = eventually(lambda: (answer := ask("/healthz"))[0] == 503 and answer, "the stuck thread is reported", 5)
    assert json.loads(text)["problems"][0].startswith("thread bridge-dispatch is stuck for 1 s")
    assert "thread bridge-dispatch is stuck" in problems(ask), "a stuck subscriber is not ready"
    gate.set()
    eventually(lambda: ask("/healthz")[0] == 200, "the thread continues", 5)

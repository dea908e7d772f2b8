"""Dead letters that Redis refuses: what they stand for is kept, everything else goes on, and they are written later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage import DeadLetter, Storage
from bridge.storage.keys import Keys
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.subscriber import Subscriber
from bridge.telemetry.counters import Counters
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber, make_app
from tests.support.queues import Queues
from tests.support.waiting import eventually

#: What is left is tried again several times a second, and claimed from a stopped subscriber almost at once.
HASTY: dict[str, Any] = {"maintenance_interval_s": 0.2, "claim_idle_s": 1.0, "redispatch_after_s": 600}
EVENTS = 100
BAD = range(0, EVENTS, 10)


class Broker(NamedTuple):
    """An application, and the queues of its broker."""

    app: Celery
    queues: Queues


@pytest.fixture(params=["broker on the bus", "broker apart"])
def broker(request: pytest.FixtureRequest, app: Celery, own_server: RedisServer, prefix: str) -> Iterator[Broker]:
    """A broker that is the Redis of the bus, or another one."""
    with ExitStack() as opened:
        if request.param == "broker apart":
            app = opened.enter_context(make_app(own_server.url, prefix))
        client = opened.enter_context(Redis.from_url(str(app.conf.broker_url)))
        yield Broker(app, Queues(client, prefix))


def publish(bus: EventBus, count: int = EVENTS) -> None:
    """Publish events, some without what the handler t.chosen and t.picky need."""
    payloads = [{} if number in BAD else {"yes": 1, "name": "x"} for number in range(count)]
    bus.publish_many([Event(type="a.b", id=f"n{number}", payload=payload) for number, payload in enumerate(payloads)])


def pending(client: Redis, prefix: str) -> int:
    return int(client.xpending(Keys(prefix).journal, "tests")["pending"])


def dead_letters(client: Redis, settings: BridgeSettings) -> list[DeadLetter]:
    return Storage(client, settings).dead_letters.latest(1000)


def tried_again(subscriber: Subscriber, times: int) -> None:
    """Wait until Redis has refused dead letters for so many times more."""
    before = subscriber.info().get("errors", 0)
    eventually(lambda: subscriber.info().get("errors", 0) >= before + times, "they are tried again")


def expected(handlers: Sequence[str]) -> dict[str, int]:
    """Return the task messages of :func:`publish`: one each, except those of a handler that cannot have the event."""
    return {
        f"{handler} {shown} n{number}": 1
        for handler in handlers
        for number in range(EVENTS)
        if handler == "t.all" or number not in BAD
        for shown in ["a.b"]
    }


@pytest.mark.parametrize("failing", ["t.chosen", "t.picky"], ids=["predicate", "refused by Celery"])
def test_an_entry_is_left_and_the_others_go_on(
    register_handlers,
    start_subscriber: StartSubscriber,
    broker: Broker,
    bus: EventBus,
    client: Redis,
    settings: BridgeSettings,
    failing: str,
) -> None:
    """Only entries with a refused dead letter stay pending; nothing is sent twice, also by another subscriber."""
    register_handlers("t.all", failing)
    prefix = settings.channel_prefix
    client.set(Keys(prefix).dead("tests"), "no stream")
    subscriber = start_subscriber(app=broker.app, **HASTY)
    publish(bus)
    messages = 2 * EVENTS - len(BAD)
    eventually(lambda: broker.queues.length() == messages, "everything else is dispatched")
    eventually(lambda: pending(client, prefix) == len(BAD), "the others are acknowledged")
    tried_again(subscriber, 3 * len(BAD))
    assert "WRONGTYPE" in subscriber._dead_letters.problem
    assert subscriber.info()["dispatched"] == messages
    subscriber.stop()
    assert pending(client, prefix) == len(BAD)
    second = start_subscriber("two", app=broker.app, **HASTY)
    eventually(lambda: second.info().get("entries_claimed", 0) >= len(BAD), "another subscriber claims them")
    tried_again(second, 2 * len(BAD))
    client.delete(Keys(prefix).dead("tests"))
    eventually(lambda: pending(client, prefix) == 0, "all are acknowledged")
    eventually(lambda: not second._dead_letters.problem, "the problem is over")
    written = dead_letters(client, settings)
    assert sorted(one.event_id for one in written) == sorted(f"n{number}" for number in BAD)
    assert {(one.handler, one.task_id == task_id_for("tests", one.event_id, failing)) for one in written} == {
        (failing, True)
    }
    assert second.info()["dead_lettered"] == len(BAD)
    assert sum(broker.queues.tasks().values()) == messages
    assert {count for task, count in broker.queues.tasks().items() if not task.startswith("t.picky")} == {1}


def test_dispatch_goes_on_while_the_bus_has_no_memory(
    each_server: RedisServer,
    app: Celery,
    register_handlers,
    start_subscriber: StartSubscriber,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """With a broker apart, all events but those whose dead letters need memory are dispatched, each once."""
    register_handlers("t.all", "t.chosen")
    with EventBus(redis_url=each_server.url, channel_prefix=prefix) as bus:
        admin = bus.client
        publish(bus)
        admin.xgroup_create(Keys(prefix).journal, "tests", id="0")
        try:
            assert admin.config_set("maxmemory", 1)
            subscriber = start_subscriber(redis_url=each_server.url, **HASTY)
            eventually(lambda: pending(admin, prefix) == len(BAD), "the others are acknowledged")
            tried_again(subscriber, 3 * len(BAD))
            assert dict(queues.tasks()) == expected(["t.all", "t.chosen"])
            assert admin.xlen(Keys(prefix).dead("tests")) == 0
        finally:
            assert admin.config_set("maxmemory", 0)
        eventually(lambda: pending(admin, prefix) == 0, "all are acknowledged")
        assert admin.xlen(Keys(prefix).dead("tests")) == len(BAD)
    assert dict(queues.tasks()) == expected(["t.all", "t.chosen"])


def test_a_task_is_left_and_the_others_are_redispatched(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """While the dead letters of tasks that are overdue the longest are refused, other overdue tasks are sent again."""
    register_handlers("t.exact", "t.own")
    lost, waiting = 150, 20  # more than a round of redispatch takes, and later ones, in another queue
    hasty = HASTY | {"redispatch_after_s": 0.5}
    first = start_subscriber(**hasty)
    bus.publish_many([Event(type="dream.created", id=f"n{number}") for number in range(lost)])
    bus.publish_many([Event(type="billing.paid", id=f"p{number}") for number in range(waiting)])
    eventually(lambda: (queues.length(), queues.length("own")) == (lost, waiting), "all are dispatched")
    keys = Keys(prefix)
    first.stop()
    assert client.delete(f"{queues.key_prefix}{prefix}celery", f"{queues.key_prefix}{prefix}own") == 2
    client.xdel(keys.journal, *(entry_id for entry_id, _ in client.xrange(keys.journal, count=lost)))
    client.delete(*(keys.event(f"n{number}") for number in range(lost)))
    overdue = {task_id_for("tests", f"n{number}", "t.exact"): number for number in range(lost)}
    overdue |= {task_id_for("tests", f"p{number}", "t.own"): lost + number for number in range(waiting)}
    assert client.zadd(keys.inflight("tests"), overdue, xx=True, ch=True) == lost + waiting
    client.set(keys.dead("tests"), "no stream")
    second = start_subscriber("two", **hasty)
    eventually(lambda: queues.length("own") == waiting, "the others are sent again")
    tried_again(second, lost)
    assert "WRONGTYPE" in second._dead_letters.problem
    client.delete(keys.dead("tests"))
    eventually(lambda: client.xlen(keys.dead("tests")) == lost, "all dead letters are written")
    assert {one.reason for one in dead_letters(client, settings)} == {"event_expired"}
    assert set(queues.tasks("own").values()) == {1}


@pytest.mark.parametrize("cause", ["wrong type", "no replicas"])
def test_rejected_messages_are_kept(
    register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer, prefix: str, cause: str
) -> None:
    """Messages that intake rejects while Redis refuses their dead letters become dead letters later, each once."""
    register_handlers("t.all")
    subscriber = start_subscriber(redis_url=own_server.url, **HASTY)
    with Redis.from_url(own_server.url) as client:
        dead = Keys(prefix).dead("tests")
        if cause == "wrong type":
            client.set(dead, "no stream")
        else:
            client.config_set("min-replicas-to-write", 1)
        for number in range(20):
            client.publish(f"{prefix}a.b", f"no json {number}")
        eventually(lambda: subscriber.info().get("errors"), "Redis refuses them")
        if cause == "wrong type":
            client.publish(f"{prefix}a.b", Event(type="a.b", id="valid").encode())
            eventually(lambda: subscriber.info().get("appended") == 1, "a valid event does not wait")
            eventually(lambda: subscriber.info().get("received") == 21, "all messages are received")
            tried_again(subscriber, 2)
            client.delete(dead)
        else:
            tried_again(subscriber, 2)
            client.config_set("min-replicas-to-write", 0)
        eventually(lambda: client.exists(dead) and client.xlen(dead) == 20, "all are dead letters")
        eventually(lambda: subscriber.info().get("invalid") == 20, "all are counted")
        assert "dead_letters_lost" not in subscriber.info()


def test_what_is_kept_of_rejected_messages_is_limited(client: Redis, settings: BridgeSettings, prefix: str) -> None:
    """The oldest are lost first, which is counted; the same message is kept once."""
    counters = Counters()
    writer = DeadLetterWriter(Storage(client, settings), counters, max_kept_bytes=10_000)
    client.set(Keys(prefix).dead("tests"), "no stream")
    for number in range(30):
        message = DeadLetter.of_message("json", "no JSON", "somewhere", b"%d" % number)
        writer.write_rejected([message], remember=False)
        writer.write_rejected([message], remember=False)
    client.delete(Keys(prefix).dead("tests"))
    writer.close()
    left = [int(one.raw) for one in dead_letters(client, settings)]
    assert left == list(range(29, 29 - len(left), -1))
    assert 5 < len(left) < 10
    assert counters.snapshot()["dead_letters_lost"] == 30 - len(left)
    assert counters.snapshot()["invalid"] == len(left)

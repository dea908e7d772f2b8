"""Messages that merely wait, wherever that is: they are not copied again and again, and their tasks do not end."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.in_flight import Ended
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually

#: The time after which a task is overdue, in seconds, and how many times as long nothing happens.
REDISPATCH_S, TIMES = 0.3, 7
HASTY = {"redispatch_after_s": REDISPATCH_S, "maintenance_interval_s": 0.05, "max_redispatches": 2, "lease_s": 1}
TASKS = 20
IDS = [task_id_for("tests", f"n{number}", "t.exact") for number in range(TASKS)]

NAMED_EXCHANGE = {"exchange": "named", "routing_key": "key"}
#: Settings of the bridge, and of Celery, for each kind of route.
ROUTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the default queue": ({}, {}),
    "another queue": ({"routes": {"dream.*": {"queue": "other"}}}, {}),
    "a named exchange": ({"routes": {"dream.*": NAMED_EXCHANGE}}, {}),
    "a routing function": ({}, {"task_routes": (lambda *_, **__: {"queue": "other"},)}),
    "a routing function to an exchange": ({}, {"task_routes": (lambda *_, **__: dict(NAMED_EXCHANGE),)}),
    "a countdown": ({"routes": {"dream.*": {"countdown": 2 * REDISPATCH_S}}}, {}),
}


def publish(bus: EventBus) -> None:
    bus.publish_many([Event(type="dream.created", id=f"n{number}") for number in range(TASKS)])


def messages(queues: Queues) -> list[str]:
    """Return the task ids of all messages that are queued."""
    return [message["headers"]["id"] for queue in ("celery", "other") for message in queues.messages(queue)]


def take(client: Redis, prefix: str) -> list[str]:
    """Take all messages from the queue, as a worker that prefetches without limit; return their task ids."""
    raw = client.rpop(f"broker:{prefix}celery", 1000) or []
    return [json.loads(one)["headers"]["id"] for one in raw]


def pass_time(started_s: float) -> None:
    eventually(lambda: time.monotonic() > started_s + TIMES * REDISPATCH_S, "seven times the limit has passed")


@pytest.mark.parametrize(("of_bridge", "of_celery"), ROUTES.values(), ids=ROUTES)
def test_workers_that_are_down(
    register_handlers,
    start_subscriber: StartSubscriber,
    app: Celery,
    bus: EventBus,
    queues: Queues,
    of_bridge: dict[str, Any],
    of_celery: dict[str, Any],
) -> None:
    """However tasks are routed, none is sent twice while no worker runs; then each starts, without a dead letter."""
    register_handlers("t.exact")
    app.conf.update(of_celery)
    with app.connection_for_write() as broker:  # as a worker does that has run before
        Queue("other", Exchange("named"), "key").bind(broker.default_channel).declare()
    subscriber = start_subscriber(**HASTY, **of_bridge)
    publish(bus)
    eventually(lambda: len(messages(queues)) == TASKS, "all messages are queued")
    pass_time(time.monotonic())
    assert sorted(messages(queues)) == sorted(IDS)
    assert "redispatched" not in subscriber.info()
    storage = Storage(bus.client, bus.settings)
    assert {storage.ledger.start_run(one, "run", idempotent=True).result for one in messages(queues)} == {"started"}
    assert storage.dead_letters.size().count == 0


def test_a_worker_that_fetches_everything_and_works_it_off(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    settings: BridgeSettings,
    client: Redis,
    prefix: str,
) -> None:
    """While a worker starts one task after the other, those that wait in its memory are not sent again."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"redispatch_after_s": 1})  # a test that is slow for so long must not stop the lane
    publish(bus)
    held: list[str] = []
    eventually(lambda: held.extend(take(client, prefix)) or len(held) == TASKS, "the worker has fetched all")
    ledger, started_s = Storage(client, settings).ledger, time.monotonic()
    for number, task_id in enumerate(held):
        due_s = started_s + 3 * number / TASKS
        eventually(lambda due_s=due_s: time.monotonic() > due_s, "the task before has ended")
        assert ledger.start_run(task_id, "run", idempotent=True).result == "started"
        ledger.end(task_id, Ended())
    assert time.monotonic() - started_s > 2
    assert messages(queues) == []


def test_a_worker_that_fetches_everything_and_stands_still(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    settings: BridgeSettings,
    client: Redis,
    prefix: str,
) -> None:
    """Its messages are copied twice at most; if they arrive after all, each task runs once, without a dead letter."""
    register_handlers("t.exact")
    start_subscriber(**HASTY)
    publish(bus)
    held: Counter[str] = Counter()
    storage = Storage(client, settings)

    def given_up() -> int:
        held.update(take(client, prefix))
        return storage.dead_letters.size().count

    eventually(lambda: given_up() == TASKS, "all tasks are given up", 30)
    assert held == dict.fromkeys(IDS, 3)
    for result in ("started", "running"):
        assert {storage.ledger.start_run(one, result, idempotent=True).result for one in IDS} == {result}
    assert storage.dead_letters.size().count == 0


def test_each_copy_is_waited_for_twice_as_long(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, client: Redis, prefix: str
) -> None:
    """A message that is lost at once is sent again after the limit; each further copy is due after twice the time."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"max_redispatches": 3})
    bus.publish("dream.created", id="n0")
    at_s: list[float] = []

    def copied() -> bool:
        if take(client, prefix):
            at_s.append(time.monotonic())
        return len(at_s) == 4

    eventually(copied, "three copies were sent")
    gaps = [after - before for before, after in pairwise(at_s)]
    assert [gap > times * 0.9 * REDISPATCH_S for gap, times in zip(gaps, (1, 2, 4), strict=True)] == [True] * 3


def test_an_event_that_expires_is_kept_in_time(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    settings: BridgeSettings,
    client: Redis,
    prefix: str,
) -> None:
    """If the event would be gone at the next check, its task is given up while the dead letter can have the event."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"max_redispatches": 100}, event_ttl_s=2)
    publish(bus)
    letters = Storage(client, settings).dead_letters

    def given_up() -> bool:
        take(client, prefix)
        return letters.size().count == TASKS

    eventually(given_up, "all are given up", 10)
    assert {(letter.reason, letter.event().type) for letter in letters.latest(100)} == {
        ("redispatch_limit", "dream.created")
    }


def test_a_task_whose_worker_died_is_not_waited_for(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    settings: BridgeSettings,
    client: Redis,
    prefix: str,
) -> None:
    """A run whose lease expired had the message: its task is sent again even while the queue is busy."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"lease_s": 0.2})
    publish(bus)
    eventually(lambda: queues.length() == TASKS, "all messages are queued")
    taken = json.loads(client.rpop(f"broker:{prefix}celery"))["headers"]["id"]
    short = Storage(client, settings.model_copy(update={"lease_s": 0.2, "redispatch_after_s": REDISPATCH_S}))
    assert short.ledger.start_run(taken, "run", idempotent=True).result == "started"
    eventually(lambda: taken in messages(queues), "it is queued again")
    assert Counter(messages(queues)) == dict.fromkeys(IDS, 1)
    assert client.hexists(Keys(prefix).queue_watermarks("tests"), "celery 0")

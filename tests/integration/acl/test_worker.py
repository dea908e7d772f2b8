"""The permissions of a worker, which runs tasks, publishes in them and, by default, has a subscriber."""

from __future__ import annotations

import json
import signal

import pytest

from bridge import Event, EventBus
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.integration.acl.subscribing import NOT_GRANTED, SOON, prepare, subscribe
from tests.support.processes import STOP_S, Processes, stops_worker
from tests.support.queues import Queues
from tests.support.restricted_redis import RestrictedRedis
from tests.support.waiting import eventually

KINDS = ["work.published", "work.retried", "work.long", "work.marked", "work.canvas"]
APP = "tests.integration.acl.app"


@pytest.fixture
def waiting(restricted_redis: RestrictedRedis, processes: Processes) -> None:
    """Queue a task of every kind; leave one that a worker has not acknowledged for too long."""
    with EventBus(restricted_redis.settings()) as bus:
        bus.publish_many([Event(type=kind, id=kind) for kind in KINDS])
    subscriber = processes.celery("bus", "subscribe", app=APP, name="subscribe", **environment(restricted_redis))
    queues = Queues(restricted_redis.admin, restricted_redis.prefix)
    eventually(lambda: queues.length() == len(KINDS), "all tasks are queued")
    subscriber.send_signal(signal.SIGTERM)
    assert subscriber.wait(20) == 0
    hold_for_too_long(restricted_redis)


def hold_for_too_long(restricted_redis: RestrictedRedis) -> None:
    """Leave a message that was taken and not acknowledged, an unused exchange, a dead letter, and full indexes."""
    keys = Keys(restricted_redis.prefix)
    for cause, count in (("work.published", 60), ("work.other", 1001)):
        restricted_redis.admin.zadd(keys.consequences(cause), {f"c{number}": 1 for number in range(count)})
    letter = DeadLetter.of_message("json", "no event", "channel", b"{")
    Storage(restricted_redis.admin, restricted_redis.settings()).dead_letters.add(letter)
    where = {"exchange": "", "routing_key": "celery"}
    properties = {"delivery_info": where, "delivery_tag": "tag", "priority": 0, "body_encoding": "base64"}
    message = {"body": "W1tdLCB7fSwge31d", "content-type": "application/json", "content-encoding": "utf-8"}
    message |= {
        "headers": {"task": "tests.integration.acl.app.one", "id": "held", "lang": "py"},
        "properties": properties,
    }
    held = json.dumps([message, "", "celery"])
    restricted_redis.admin.hset(f"broker:{restricted_redis.prefix}unacked", "tag", held)
    restricted_redis.admin.zadd(f"broker:{restricted_redis.prefix}unacked_index", {"tag": 1})
    restricted_redis.admin.zadd(f"broker:{restricted_redis.prefix}_kombu.binding_deadlines", {"of-one-who-went": 1})


def environment(restricted_redis: RestrictedRedis, user: str = "") -> dict[str, str]:
    settings = {f"BRIDGE_{name.upper()}": str(value) for name, value in SOON.items()}
    return {"REDIS_URL": restricted_redis.url(user), "BRIDGE_GROUP": "tests", "BRIDGE_LEASE_S": "1", **settings} | {
        "BRIDGE_REDISPATCH_AFTER_S": "5",
    }


def work(restricted_redis: RestrictedRedis, user: str, processes: Processes, *arguments: str) -> None:
    """Run a worker until all tasks have ended, and inspect it."""
    command = ["worker", "-n", "w1@test", "-c", "2", "-l", "INFO", *arguments]
    keys, admin = Keys(restricted_redis.prefix), restricted_redis.admin
    admin.set(keys.event("work.long"), "another one", ex=60)
    worker = processes.celery(*command, app=APP, name="w1", **environment(restricted_redis, user))
    letters = Storage(admin, restricted_redis.settings()).dead_letters
    eventually(
        lambda: [letter.event_type for letter in letters.latest(9)] == ["work.retried"],
        "the dead letter is written",
        30,
    )
    eventually(lambda: admin.zcard(keys.inflight("tests")) == 0, "all tasks have ended", 30)
    results = f"broker:{restricted_redis.prefix}celery-task-meta-"
    eventually(
        lambda: any(b'"result": 2' in admin.get(key) for key in admin.scan_iter(results + "*")),
        "the chord has its result",
        30,
    )
    assert [row[b"type"] for _, row in admin.xrange(keys.journal)].count(b"work.told") == 3
    asking = processes.celery("inspect", "ping", app=APP, name="asking", **environment(restricted_redis, user))
    assert asking.wait(20) == 0
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(STOP_S) == 0
    assert "NoPermission" not in processes.log("w1")


def refusals(restricted_redis: RestrictedRedis) -> set[str]:
    return {text for text in restricted_redis.refusals() if text.split()[2] not in NOT_GRANTED}


@stops_worker
def test_one_that_only_runs_tasks_has_what_it_needs_and_no_more(
    restricted_redis: RestrictedRedis, waiting: None, processes: Processes
) -> None:
    """A worker without a subscriber is refused no command, and each of its permissions is needed."""
    rules = restricted_redis.grant("shop", "worker", "--no-subscriber")
    with restricted_redis.recorded() as commands:
        work(restricted_redis, "shop", processes, "--no-subscriber")
    assert refusals(restricted_redis) == set()
    restricted_redis.judge(rules, commands)


@stops_worker
def test_one_with_a_subscriber_has_what_it_needs_and_no_more(
    restricted_redis: RestrictedRedis, processes: Processes
) -> None:
    """A worker with a subscriber is refused only CONFIG GET, and each of its permissions is needed."""
    rules = restricted_redis.grant("shop", "worker", **SOON)
    prepare(restricted_redis)
    with restricted_redis.recorded() as commands:
        subscribe(restricted_redis, "shop", restricted_redis.admin)
        restricted_redis.admin.delete(*restricted_redis.admin.keys(f"*{restricted_redis.prefix}*"))
        with EventBus(restricted_redis.settings("shop")) as bus:
            bus.publish_many([Event(type=kind, id=kind) for kind in KINDS])
        hold_for_too_long(restricted_redis)
        work(restricted_redis, "shop", processes)
    assert refusals(restricted_redis) == set()
    restricted_redis.judge(rules, [words for words in commands if words[0] != b"CONFIG"])

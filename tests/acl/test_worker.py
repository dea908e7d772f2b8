"""What a worker may do: run tasks and publish in them, and turn events into tasks unless it is told not to."""

from __future__ import annotations

import json
import signal

import pytest

from bridge import Event, EventBus
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.keys import Keys
from tests.acl.place import Place
from tests.acl.test_subscriber import NOT_GRANTED, SOON, prepare, subscribe
from tests.conftest import STOP_S, Processes, Queues, eventually, stops_worker

KINDS = ["work.published", "work.retried", "work.long", "work.marked", "work.canvas"]
APP = "tests.acl.app"


@pytest.fixture
def waiting(place: Place, processes: Processes) -> None:
    """Tasks of every kind in the queue, and one that a worker has held for too long."""
    with EventBus(place.settings()) as bus:
        bus.publish_many([Event(type=kind, id=kind) for kind in KINDS])
    subscriber = processes.celery("bus", "subscribe", app=APP, name="subscribe", **environment(place))
    queues = Queues(place.admin, place.prefix)
    eventually(lambda: queues.length() == len(KINDS), "all wait in the queue")
    subscriber.send_signal(signal.SIGTERM)
    assert subscriber.wait(20) == 0
    hold_for_too_long(place)


def hold_for_too_long(place: Place) -> None:
    """Leave a message that was taken from the queue and not acknowledged, an unused exchange, and a dead letter."""
    letter = DeadLetter.of_message("json", "no event", "channel", b"{")
    DeadLetters(place.admin, place.settings()).add(letter)
    where = {"exchange": "", "routing_key": "celery"}
    properties = {"delivery_info": where, "delivery_tag": "tag", "priority": 0, "body_encoding": "base64"}
    message = {"body": "W1tdLCB7fSwge31d", "content-type": "application/json", "content-encoding": "utf-8"}
    message |= {"headers": {"task": "tests.acl.app.one", "id": "held", "lang": "py"}, "properties": properties}
    held = json.dumps([message, "", "celery"])
    place.admin.hset(f"broker:{place.prefix}unacked", "tag", held)
    place.admin.zadd(f"broker:{place.prefix}unacked_index", {"tag": 1})
    place.admin.zadd(f"broker:{place.prefix}_kombu.binding_deadlines", {"of-one-who-went": 1})


def environment(place: Place, user: str = "") -> dict[str, str]:
    settings = {f"BRIDGE_{name.upper()}": str(value) for name, value in SOON.items()}
    return {"REDIS_URL": place.url(user), "BRIDGE_GROUP": "tests", "BRIDGE_LEASE_S": "1", **settings} | {
        "BRIDGE_REDISPATCH_AFTER_S": "5",
    }


def work(place: Place, user: str, processes: Processes, *arguments: str) -> None:
    """Let a worker run until all has ended, and ask it what it is."""
    command = ["worker", "-n", "w1@test", "-c", "2", "-l", "INFO", *arguments]
    worker = processes.celery(*command, app=APP, name="w1", **environment(place, user))
    keys, admin = Keys(place.prefix), place.admin
    letters = DeadLetters(admin, place.settings())
    eventually(lambda: [letter.event_type for letter in letters.latest(9)] == ["work.retried"], "the dead letter", 30)
    eventually(lambda: admin.zcard(keys.inflight("tests")) == 0, "all has ended", 30)
    results = f"broker:{place.prefix}celery-task-meta-"
    eventually(lambda: any(b'"result": 2' in admin.get(key) for key in admin.scan_iter(results + "*")), "the chord", 30)
    assert [row[b"type"] for _, row in admin.xrange(keys.journal)].count(b"work.told") == 3
    asking = processes.celery("inspect", "ping", app=APP, name="asking", **environment(place, user))
    assert asking.wait(20) == 0
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(STOP_S) == 0
    assert "NoPermission" not in processes.log("w1")


def refusals(place: Place) -> set[str]:
    return {text for text in place.refusals() if text.split()[2] not in NOT_GRANTED}


@stops_worker
def test_one_that_only_runs_tasks_has_what_it_needs_and_no_more(
    place: Place, waiting: None, processes: Processes
) -> None:
    """It works and nothing is refused; each right that is taken away would have something refused."""
    rules = place.grant("shop", "worker", "--no-subscriber")
    with place.recorded() as commands:
        work(place, "shop", processes, "--no-subscriber")
    assert refusals(place) == set()
    place.judge(rules, commands)


@stops_worker
def test_one_with_a_subscriber_has_what_it_needs_and_no_more(place: Place, processes: Processes) -> None:
    """Likewise, and what it does for the events of others as well."""
    rules = place.grant("shop", "worker", **SOON)
    prepare(place)
    with place.recorded() as commands:
        subscribe(place, "shop", place.admin)
        place.admin.delete(*place.admin.keys(f"*{place.prefix}*"))
        with EventBus(place.settings("shop")) as bus:
            bus.publish_many([Event(type=kind, id=kind) for kind in KINDS])
        hold_for_too_long(place)
        work(place, "shop", processes)
    assert refusals(place) == set()
    place.judge(rules, [words for words in commands if words[0] != b"CONFIG"])

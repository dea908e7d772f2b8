"""The permissions of an operator: to read everything, and to retry and replay, with commands and in Flower."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from flower.utils.broker import Redis as FlowersBroker

from bridge import Event, EventBus
from bridge.cli.follow import Follower
from bridge.flower import actions
from bridge.flower.data import EventData
from bridge.handlers.handler import task_id_for
from bridge.redis.client import connect
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.outside import as_typescript_broadcasts
from tests.support.restricted_redis import RestrictedRedis
from tests.support.waiting import calls, eventually


def prepare(restricted_redis: RestrictedRedis) -> None:
    """Leave data for the operator: events, some of them dispatched, tasks, results, dead letters and another group."""
    keys, settings = Keys(restricted_redis.prefix), restricted_redis.settings()
    with EventBus(settings) as bus:
        first = Event(type="dream.created", id="first", payload={"yes": 1})
        bus.publish_many([first, first.child("dream.told", {"yes": 1})])
        for group in ("tests", "old-shop"):
            restricted_redis.admin.xgroup_create(keys.journal, group, id="0")
        rows: Any = restricted_redis.admin.xreadgroup("old-shop", "somebody", {keys.journal: ">"}, count=1)
        restricted_redis.admin.xreadgroup("tests", "somebody", {keys.journal: ">"}, count=1)
        entry_id = rows[0][1][0][0].decode()
        ids = {name: task_id_for("tests", "first", name) for name in ("t.exact", "t.chosen", "t.picky")}
        Storage(bus.client, settings).ledger.acknowledge_sent(
            [], [InFlightTask("t.exact", "first", entry_id).entry(ids["t.exact"])]
        )
        restricted_redis.admin.set(keys.done(ids["t.chosen"]), "- 1 celery", ex=60)
        letters = Storage(bus.client, settings).dead_letters
        for reason in ("failure", "payload"):
            letters.add(DeadLetter.of_event(reason, "boom", first, first.encode(), "t.exact", reason))
        held = json.dumps([{"properties": {}, "headers": {}}, "", "celery"])  # unacknowledged by a worker for too long
        restricted_redis.admin.hset(f"broker:{restricted_redis.prefix}unacked", "tag", held)
        restricted_redis.admin.zadd(f"broker:{restricted_redis.prefix}unacked_index", {"tag": 1})
        restricted_redis.admin.zadd(f"broker:{restricted_redis.prefix}_kombu.binding_deadlines", {"of-one-who-went": 1})
        for mark in (
            "replay:old-shop:r",
            "replays:old-shop:e",
            "parked:old-shop:m",
            "skipped:old-shop:e",
            "dead:old-shop",
        ):
            restricted_redis.admin.xadd(keys.journal.replace("journal", mark), {"f": "v"})


def operate(restricted_redis: RestrictedRedis, user: str) -> None:
    """Run every command, and load the data of Flower's pages."""

    def say(text: str, **options: Any) -> str:
        return str(restricted_redis.invoke(*text.split(), user=user, **options).output)

    assert "old-shop" in say("status")
    assert "old-shop" in say("groups list")
    assert "are kept for group old-shop" in say("groups retain old-shop 3d")
    assert "ok    permissions of the bus user" in say("check --role operator", expect=1)  # no worker is running
    assert "dream.told" in say("trace first")
    assert "first" in say("get first")
    assert "first" in say("get fir")  # found by a scan
    restricted_redis.admin.delete(Keys(restricted_redis.prefix).event("first"))
    assert "first" in say("get first")  # from the journal
    assert "boom" in say("dead list")
    dead_letter = Storage(restricted_redis.admin, restricted_redis.settings()).dead_letters.latest(1)[0].dead_letter_id
    assert "boom" in say(f"dead show {dead_letter}")
    assert "1 " in say("dead retry --reason payload --yes")
    assert "2 " in say("replay --all --name r --yes")
    assert say("replay --all --name r --yes")
    assert "deleted" in say("groups delete old-shop --force --yes")
    assert "there is no group nobody" in say("groups delete nobody --yes", expect=1)
    tail(restricted_redis, user)
    flower(restricted_redis, user)
    assert say("dead purge --all --yes")


def tail(restricted_redis: RestrictedRedis, user: str) -> None:
    """Receive an event whose source is in its key, and the follower's own heartbeat."""
    keys, settings = Keys(restricted_redis.prefix), restricted_redis.settings(user, heartbeat_interval_s=0.2)
    event = as_typescript_broadcasts(Event(type="dream.created", id="heard")).encode()
    restricted_redis.admin.set(keys.event("heard"), event, ex=60)
    deadline_s = time.monotonic() + 20
    heard = published = 0

    def tick() -> bool:
        nonlocal heard, published
        if heard < 3:
            heard += int(restricted_redis.admin.publish(keys.channel("dream.created"), event))
            published = calls(restricted_redis.admin)["publish"]
        # Without events, the listener publishes a heartbeat to itself.
        return calls(restricted_redis.admin)["publish"] == published and time.monotonic() < deadline_s

    with connect(settings) as client:
        Follower(Storage(client, settings), [], as_json=True).follow(since_ms=1, tick=tick)


def flower(restricted_redis: RestrictedRedis, user: str) -> None:
    with restricted_redis.as_user(user):
        data = EventData(restricted_redis.app)
        assert data.events("", "", 0, 50).rows
        assert data.dead_letters.page("", 0, 50).rows
        assert data.page("first")
        assert "Retried" in actions.retry(data, data.storage.dead_letters.latest(1)[0].dead_letter_id, "me", "again")
        data.storage.client.close()
        broker = FlowersBroker(
            restricted_redis.url(user), broker_options=restricted_redis.app.conf.broker_transport_options
        )

        def restored() -> bool:  # kombu restores expired messages after a read that returned nothing
            assert restricted_redis.app.control.ping(timeout=0.1) == []
            return asyncio.run(broker.queues(["celery"]))[0]["messages"] == 1

        eventually(restored, "the message is in its queue again")
        with restricted_redis.app.connection_for_read() as connection, suppress(TimeoutError):
            list(restricted_redis.app.events.Receiver(connection).itercapture(limit=1, timeout=0.2))


def test_an_operator_has_what_it_needs_and_no_more(restricted_redis: RestrictedRedis) -> None:
    """Every command is allowed, and each permission is needed: without it, some command would be refused."""
    rules = restricted_redis.grant("shop", "operator")
    prepare(restricted_redis)
    with restricted_redis.recorded() as commands:
        operate(restricted_redis, "shop")
    assert restricted_redis.refusals() == set()
    restricted_redis.judge(rules, commands)

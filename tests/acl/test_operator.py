"""What an operator may do: look at everything, retry and replay, from the command line and from Flower."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

from flower.utils.broker import Redis as FlowersBroker

from bridge import Event, EventBus
from bridge.cli.follow import Follower
from bridge.events.event import UNHEARD_SOURCE
from bridge.flower import actions
from bridge.flower.data import EventData
from bridge.handlers.handler import task_id_for
from bridge.redis.client import connect
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.keys import Keys
from bridge.storage.ledger import InFlightTask, Ledger
from tests.acl.place import Place
from tests.conftest import calls, eventually


def prepare(place: Place) -> None:
    """Leave something to look at: events, some of them dispatched, tasks, results and dead letters, another group."""
    keys, settings = Keys(place.prefix), place.settings()
    with EventBus(settings) as bus:
        first = Event(type="dream.created", id="first", payload={"yes": 1})
        bus.publish_many([first, first.child("dream.told", {"yes": 1})])
        for group in ("tests", "old-shop"):
            place.admin.xgroup_create(keys.journal, group, id="0")
        rows: Any = place.admin.xreadgroup("old-shop", "somebody", {keys.journal: ">"}, count=1)
        place.admin.xreadgroup("tests", "somebody", {keys.journal: ">"}, count=1)
        entry_id = rows[0][1][0][0].decode()
        ids = {name: task_id_for("tests", "first", name) for name in ("t.exact", "t.chosen", "t.picky")}
        Ledger(bus.client, settings).sent([], [InFlightTask("t.exact", "first", entry_id).listed(ids["t.exact"])])
        place.admin.set(keys.done(ids["t.chosen"]), "- 1 celery", ex=60)
        letters = DeadLetters(bus.client, settings)
        for reason in ("failure", "payload"):
            letters.add(DeadLetter.of_event(reason, "boom", first, first.encode(), "t.exact", reason))
        held = json.dumps([{"properties": {}, "headers": {}}, "", "celery"])  # by a worker, for too long
        place.admin.hset(f"broker:{place.prefix}unacked", "tag", held)
        place.admin.zadd(f"broker:{place.prefix}unacked_index", {"tag": 1})
        place.admin.zadd(f"broker:{place.prefix}_kombu.binding_deadlines", {"of-one-who-went": 1})
        for mark in ("replay:old-shop:r", "replays:old-shop:e", "parked:old-shop:m", "dead:old-shop"):
            place.admin.xadd(keys.journal.replace("journal", mark), {"f": "v"})


def operate(place: Place, user: str) -> None:
    """Every command, and what the pages of Flower ask."""

    def say(text: str, **options: Any) -> str:
        return str(place.say(*text.split(), user=user, **options).output)

    assert "old-shop" in say("status")
    assert "old-shop" in say("groups list")
    assert "ok    rights of the bus user" in say("check --role operator", expect=1)  # no worker lives
    assert "dream.told" in say("trace first")
    assert "first" in say("get first")
    place.admin.delete(Keys(place.prefix).event("first"))
    assert "first" in say("get first")  # from the journal
    assert "boom" in say("dead list")
    letter = DeadLetters(place.admin, place.settings()).latest(1)[0].letter_id
    assert "boom" in say(f"dead show {letter}")
    assert "1 " in say("dead retry --reason payload")
    assert "2 " in say("replay --all --name r")
    assert say("replay --all --name r")
    assert "deleted" in say("groups delete old-shop --force")
    assert "there is no group nobody" in say("groups delete nobody --force", expect=1)
    tail(place, user)
    flower(place, user)
    assert say("dead purge --all --force")


def tail(place: Place, user: str) -> None:
    """Hear an event whose source is in its key, and the own heartbeat."""
    keys, settings = Keys(place.prefix), place.settings(user, heartbeat_interval_s=0.2)
    event = Event(type="dream.created", id="heard", source=UNHEARD_SOURCE).encode()
    place.admin.set(keys.event("heard"), event, ex=60)
    deadline_s = time.monotonic() + 20
    heard = published = 0

    def tick() -> bool:
        nonlocal heard, published
        if heard < 3:
            heard += int(place.admin.publish(keys.channel("dream.created"), event))
            published = calls(place.admin)["publish"]
        # In silence the feed wants to hear itself.
        return calls(place.admin)["publish"] == published and time.monotonic() < deadline_s

    with connect(settings) as client:
        Follower(client, settings, [], as_json=True).follow(since_ms=1, tick=tick)


def flower(place: Place, user: str) -> None:
    with place.as_user(user):
        data = EventData(place.app)
        assert data.events("", "", 0, 50).rows
        assert data.dead("", 0, 50).rows
        assert data.page("first")
        assert "Retried" in actions.retry(data, data.letters.latest(1)[0].letter_id, "me")
        data.client.close()
        broker = FlowersBroker(place.url(user), broker_options=place.app.conf.broker_transport_options)

        def restored() -> bool:  # kombu restores what was held for too long whenever it has waited in vain
            assert place.app.control.ping(timeout=0.1) == []
            return asyncio.run(broker.queues(["celery"]))[0]["messages"] == 1

        eventually(restored, "it is in its queue again")
        with place.app.connection_for_read() as connection, suppress(TimeoutError):
            list(place.app.events.Receiver(connection).itercapture(limit=1, timeout=0.2))


def test_it_has_what_it_needs_and_no_more(place: Place) -> None:
    """Everything works and nothing is refused; each right that is taken away would have something refused."""
    rules = place.grant("shop", "operator")
    prepare(place)
    with place.recorded() as commands:
        operate(place, "shop")
    assert place.refusals() == set()
    place.judge(rules, commands)

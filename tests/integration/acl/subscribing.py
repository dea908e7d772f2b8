"""A subscriber that sends every command to Redis that a subscriber may send, for the ACL tests."""

from __future__ import annotations

import urllib.request
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.in_flight import InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.storage.queue_sample import QueueSample
from bridge.storage.storage import Storage
from bridge.subscriber.subscriber import Subscriber
from tests.support.outside import as_typescript_broadcasts
from tests.support.ports import free_port
from tests.support.queues import Queues
from tests.support.restricted_redis import RestrictedRedis
from tests.support.waiting import calls, eventually

#: Durations short enough for a test.
SOON = {
    "maintenance_interval_s": 0.1,
    "claim_idle_s": 0.1,
    "redispatch_after_s": 0.2,
    "heartbeat_interval_s": 0.2,
    "max_redispatches": 1,
    "max_dead_letters": 1,
    "max_events_per_s_per_source": 100,
}
#: Requested once, to warn about settings that lose events; not granted, because the reply reveals too much.
NOT_GRANTED = {"config|get", "config"}


def prepare(restricted_redis: RestrictedRedis) -> None:
    """Leave work for a subscriber: entries of a crashed consumer, overdue and ended tasks, an old key, full indexes.

    And what it has to forget: a queue that is used no more, a dead worker, and the retention of an operator whose time
    is over.
    """
    keys, settings = Keys(restricted_redis.prefix), restricted_redis.settings()
    restricted_redis.admin.xadd(keys.journal, {"id": "ancient", "type": "a.b", "event": "{}"}, id="1-1")
    restricted_redis.admin.xgroup_create(keys.journal, "tests", id="0")
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="dream.created", id=f"old-{number}", payload={"yes": 1}) for number in range(3)])
        rows: Any = restricted_redis.admin.xreadgroup("tests", "dead", {keys.journal: ">"}, count=2)
        entry_id = rows[0][1][0][0].decode()
        ledger = Storage(bus.client, settings.model_copy(update={"redispatch_after_s": 0.001})).ledger
        for event_id in ("old-0", "gone", "ended"):
            pair = InFlightTask("t.exact", event_id, entry_id if event_id == "old-0" else "1-1", queue="celery")
            ledger.acknowledge_sent([], [pair.entry(task_id_for("tests", event_id, "t.exact"))])
        restricted_redis.admin.zadd(keys.inflight("tests"), {"without a pair": 1})
        restricted_redis.admin.set(keys.done(task_id_for("tests", "ended", "t.exact")), "- 1 celery", ex=60)
        restricted_redis.admin.set(keys.event("stale"), Event(type="a.b", id="stale", timestamp=1).encode())
        restricted_redis.admin.hset(keys.queue_watermarks("tests"), "old 0 started", 1)
        restricted_redis.admin.hset(keys.group_settings, "retained:tests", "1 1 1")
        restricted_redis.admin.hset(keys.workers("tests"), "dead", "1 {}")
        for cause, count in (("new-2", 1001), ("new-3", 60)):
            members = {f"c{number}": 1 for number in range(count)}
            restricted_redis.admin.zadd(keys.consequences(cause), members)


def subscribe(restricted_redis: RestrictedRedis, user: str, admin: Redis) -> None:
    """Run a subscriber through all that it does, while other programs publish."""
    keys, port = Keys(restricted_redis.prefix), free_port()
    routes = {"dream.urgent": {"priority": 6}}
    settings = restricted_redis.settings(user, metrics_port=port, event_ttl_s=3600, routes=routes, **SOON)
    queues = Queues(admin, restricted_redis.prefix)
    with restricted_redis.as_user(user):
        subscriber = Subscriber(restricted_redis.app, settings, "one")
    subscriber.start()
    try:
        assert subscriber.ready.wait(20)
        for number in range(4):
            event = Event(type="dream.created", id=f"new-{number}", payload={"no": 1})
            admin.set(keys.event(event.id), event.encode(), ex=60)
            admin.publish(keys.channel(event.type), as_typescript_broadcasts(event).encode())
        for cause in (Event(type="dream.created", id="new-2"), event):
            caused = cause.child("dream.told", {"yes": 1, "name": "of a shadow"})
            admin.publish(keys.channel("dream.told"), caused.encode())
        admin.publish(keys.channel("dream.told"), b"no event")
        urgent = Event(type="dream.urgent", payload={"yes": 1})
        admin.publish(keys.channel(urgent.type), urgent.encode())
        for task in ("t.exact dream.created new-0", "t.chosen dream.told", "t.picky dream.told"):
            eventually(lambda: any(one.startswith(task) for one in queues.tasks()), task)  # noqa: B023  # called now
        eventually(
            lambda: admin.hget(keys.dead_size("tests"), "dropped"), "dead letters are written and one is evicted"
        )
        eventually(
            lambda: admin.zcard(keys.inflight("tests")) and not ended(restricted_redis),
            "the ended task is removed from the ledger",
        )
        again = (keys.channel(event.type), event.encode())
        eventually(
            lambda: admin.publish(*again) and subscriber.counters.snapshot().get("duplicate", 0) > 20,
            "more than 20 duplicates are received",
        )
        eventually(lambda: not admin.hexists(keys.queue_watermarks("tests"), "old 0 started"), "a queue is forgotten")
        eventually(lambda: not admin.hexists(keys.group_settings, "retained:tests"), "a retention is forgotten")
        eventually(lambda: not admin.hexists(keys.workers("tests"), "dead"), "a dead worker is forgotten")
        samples = Storage(admin, settings).queue_samples
        eventually(lambda: priorities(samples.read()[1]) == 2, "the queue is measured, with both priorities")
        so_far = calls(admin)["publish"]
        eventually(lambda: calls(admin)["publish"] > so_far, "without events, it publishes a heartbeat to itself")
        eventually(lambda: subscriber.info()["warnings"], "it has checked the settings of the server")
        hand_over(settings, admin)
        admin.xadd(keys.journal, {"event": "the last one"}, id="18446744073709551615-18446744073709551615")
        eventually(lambda: can_append(admin, keys), "the journal is repaired")
        eventually(lambda: not admin.exists(keys.set_aside), "all entries are in the journal again")
        admin.xgroup_destroy(keys.journal, "tests")
        eventually(lambda: admin.xinfo_groups(keys.journal), "the group exists again")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"bridge_journal" in answer.read()
    finally:
        subscriber.stop()


def hand_over(settings: BridgeSettings, admin: Redis) -> None:
    """Let the subscriber hand over an event to another one, and claim it back when that one has gone."""
    storage = Storage(admin, settings)
    handed_over, event = storage.keys.handed_over("tests"), Event(type="mate.new", id="for-a-mate")
    mate = Presence("mate", handlers={"t.mate": ["mate.*"]})
    storage.presence.report(mate)
    admin.publish(storage.keys.channel(event.type), event.encode())
    eventually(lambda: admin.exists(handed_over), "the event is handed over")
    storage.presence.leave(mate, differs=True)
    key = storage.keys.subscribers("tests")
    _, _, report = admin.hget(key, "mate").partition(b" ")
    admin.hset(key, "mate", b"%d %b" % ((admin.time()[0] - 61) * 1000, report))  # a minute later
    eventually(lambda: not admin.hexists(key, "mate"), "the other one is forgotten")
    eventually(lambda: not admin.exists(handed_over), "nobody needs it any more")


def can_append(admin: Redis, keys: Keys) -> bool:
    with suppress(ResponseError):
        return bool(admin.xadd(keys.journal, {"event": "another one"}))
    return False


def priorities(sample: QueueSample | None) -> int:
    """Return for how many priorities messages wait in a queue."""
    return max((len(record.history.heads) for record in sample.queues), default=0) if sample else 0


def ended(restricted_redis: RestrictedRedis) -> bool:
    task_id = task_id_for("tests", "ended", "t.exact")
    return restricted_redis.admin.zscore(Keys(restricted_redis.prefix).inflight("tests"), task_id) is not None

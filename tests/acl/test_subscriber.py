"""What ``bus subscribe`` may do: turn events into tasks, and look after those that are lost."""

from __future__ import annotations

import urllib.request
from typing import Any

from redis import Redis

from bridge import Event, EventBus
from bridge.events.event import UNHEARD_SOURCE
from bridge.handlers.handler import task_id_for
from bridge.storage.keys import Keys
from bridge.storage.ledger import InFlightTask, Ledger
from bridge.subscriber.subscriber import Subscriber
from tests.acl.place import Place
from tests.conftest import Queues, calls, eventually
from tests.ports import free_port

#: Times that come within the test.
SOON = {
    "maintenance_interval_s": 0.1,
    "claim_idle_s": 0.1,
    "redispatch_after_s": 0.2,
    "heartbeat_interval_s": 0.2,
    "max_redispatches": 1,
    "max_dead_letters": 1,
    "max_events_per_s_per_source": 100,
}
#: Asked for once, to warn of what loses events; it tells too much to be granted.
NOT_GRANTED = {"config|get", "config"}


def prepare(place: Place) -> None:
    """Leave what needs looking after: entries of a consumer that died, tasks that are overdue, one that has ended."""
    keys, settings = Keys(place.prefix), place.settings()
    place.admin.xadd(keys.journal, {"id": "ancient", "type": "a.b", "event": "{}"}, id="1-1")
    place.admin.xgroup_create(keys.journal, "tests", id="0")
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="dream.created", id=f"old-{number}", payload={"yes": 1}) for number in range(3)])
        rows: Any = place.admin.xreadgroup("tests", "dead", {keys.journal: ">"}, count=2)
        entry_id = rows[0][1][0][0].decode()
        ledger = Ledger(bus.client, settings.model_copy(update={"redispatch_after_s": 0.001}))
        for event_id in ("old-0", "gone", "ended"):
            pair = InFlightTask("t.exact", event_id, entry_id if event_id == "old-0" else "1-1", queue="celery")
            ledger.sent([], [pair.listed(task_id_for("tests", event_id, "t.exact"))])
        place.admin.zadd(keys.inflight("tests"), {"without a pair": 1})
        place.admin.set(keys.done(task_id_for("tests", "ended", "t.exact")), "- 1 celery", ex=60)


def subscribe(place: Place, user: str, admin: Redis) -> None:
    """All that a subscriber does, while other programs publish."""
    keys, port = Keys(place.prefix), free_port()
    settings = place.settings(user, metrics_port=port, event_ttl_s=3600, **SOON)
    queues = Queues(admin, place.prefix)
    with place.as_user(user):
        subscriber = Subscriber(place.app, settings, "one")
    subscriber.start()
    try:
        assert subscriber.ready.wait(20)
        for number in range(4):
            event = Event(type="dream.created", id=f"new-{number}", source=UNHEARD_SOURCE, payload={"no": 1})
            admin.set(keys.event(event.id), event.encode(), ex=60)
            admin.publish(keys.channel(event.type), event.encode())
        caused = event.child("dream.told", {"yes": 1, "name": "of a shadow"})
        admin.publish(keys.channel("dream.told"), caused.encode())
        admin.publish(keys.channel("dream.told"), b"no event")
        for task in ("t.exact dream.created new-0", "t.chosen dream.told", "t.picky dream.told"):
            eventually(lambda: any(one.startswith(task) for one in queues.tasks()), task)  # noqa: B023  # called now
        eventually(lambda: admin.hget(keys.dead_size("tests"), "dropped"), "dead letters, of which one made room")
        eventually(lambda: admin.zcard(keys.inflight("tests")) and not ended(place), "the ended task is struck")
        again = (keys.channel(event.type), event.encode())
        eventually(
            lambda: admin.publish(*again) and subscriber.counters.snapshot().get("duplicate", 0) > 20, "repetitions"
        )
        so_far = calls(admin)["publish"]
        eventually(lambda: calls(admin)["publish"] > so_far, "in silence it wants to hear itself")
        eventually(lambda: subscriber.info()["warnings"], "it has looked at the settings of the server")
        admin.xgroup_destroy(keys.journal, "tests")
        eventually(lambda: admin.xinfo_groups(keys.journal), "the group is there again")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"bridge_journal" in answer.read()
    finally:
        subscriber.stop()


def ended(place: Place) -> bool:
    task_id = task_id_for("tests", "ended", "t.exact")
    return place.admin.zscore(Keys(place.prefix).inflight("tests"), task_id) is not None


def test_it_has_what_it_needs_and_no_more(place: Place) -> None:
    """It works and nothing but CONFIG GET is refused; each right that is taken away would have something refused."""
    rules = place.grant("shop", "subscriber", **SOON)
    prepare(place)
    with place.recorded() as commands:
        subscribe(place, "shop", place.admin)
    assert {text for text in place.refusals() if text.split()[2] not in NOT_GRANTED} == set()
    wanted = [words for words in commands if words[0] != b"CONFIG"]
    place.judge(rules, wanted)

"""Presence of subscribers: which are alive, and the status that they report."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.redis.client import connect
from bridge.storage.presence import Presence, PresenceStore
from bridge.storage.storage import Storage
from bridge.subscriber.monitoring import health
from bridge.subscriber.monitoring import reporter as monitoring
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.waiting import eventually


@pytest.fixture
def presences(client: Redis, settings: BridgeSettings) -> PresenceStore:
    return Storage(client, settings).presence


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers in this process check and report their status many times a second."""
    monkeypatch.setattr(monitoring, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(health, "_KEEP_BROKER_S", 0.1)


def only(presences: PresenceStore) -> Presence:
    """The only subscriber; before its first report, one without a name that is not ready."""
    (one,) = presences.all() or [Presence("", problems=["has said nothing yet"])]
    return one


def test_a_live_subscriber_is_ready(
    register_handlers, start_subscriber: StartSubscriber, presences: PresenceStore
) -> None:
    """A subscriber is listed when it has started, ready when it processes events, and not alive after a stop."""
    register_handlers("t.all")
    subscriber = start_subscriber("one")
    first = eventually(lambda: only(presences).name and only(presences), "the subscriber is listed", 10)
    assert (first.name, first.host, first.alive) == ("one", socket.gethostname(), True)
    ready = eventually(lambda: only(presences).ready and only(presences), "the subscriber is ready", 5)
    assert (ready.problems, ready.waits, ready.metrics, ready.gap_ms) == ([], "", "", 0)
    subscriber.stop()
    assert [(one.name, one.stopped, one.alive) for one in presences.all()] == [("one", True, False)]


def test_every_subscriber_of_a_group_speaks_for_itself(
    register_handlers, start_subscriber: StartSubscriber, presences: PresenceStore
) -> None:
    """The subscribers of a group are listed by name, with the addresses of their metrics; other groups are separate."""
    register_handlers("t.all")
    start_subscriber("two", metrics_port=free_port())
    start_subscriber("one")
    start_subscriber("three", group="other")
    found = eventually(lambda: len(presences.all()) == 2 and presences.all(), "both subscribers are listed", 5)
    assert [one.name for one in found] == ["one", "two"]
    assert found[1].metrics.startswith("http://127.0.0.1:")


def test_a_subscriber_tells_its_rate(
    register_handlers, often: None, start_subscriber: StartSubscriber, presences: PresenceStore, bus: EventBus
) -> None:
    """A subscriber reports the task messages per second that it sends, and zero when no more events come."""
    register_handlers("t.all", "t.exact")
    start_subscriber()
    eventually(lambda: bus.publish("dream.created") and only(presences).dispatched_per_s > 0, "a rate is reported", 10)
    eventually(lambda: only(presences).dispatched_per_s == 0, "the rate is zero", 5)


def test_a_subscriber_tells_when_events_may_have_been_missed(
    register_handlers,
    often: None,
    start_subscriber: StartSubscriber,
    presences: PresenceStore,
    client: Redis,
    settings: BridgeSettings,
) -> None:
    """A subscriber reports the time of the last interruption of its subscription, in ms."""
    register_handlers("t.all")
    start_subscriber()
    before_ms = client.time()[0] * 1000
    for connection in client.client_list():
        if connection["name"] == settings.client_name and int(connection["psub"]):
            client.client_kill_filter(_id=connection["id"])
    told = eventually(lambda: only(presences).gap_ms, "the interruption is reported", 10)
    assert before_ms <= told <= (client.time()[0] + 1) * 1000


def test_a_subscriber_tells_what_it_waits_for(
    register_handlers,
    often: None,
    start_subscriber: StartSubscriber,
    presences: PresenceStore,
    client: Redis,
    bus: EventBus,
    queues: Queues,
) -> None:
    """While a queue is full, a subscriber reports which queue it waits for and stays ready."""
    register_handlers("t.all")
    start_subscriber(max_queue_length=2)
    eventually(lambda: only(presences).ready, "the subscriber is ready", 5)
    for number in range(2):
        bus.publish("a.b", id=f"n{number}")
    eventually(lambda: queues.length() == 2, "the queue is full")
    bus.publish("a.b", id="n2")
    eventually(lambda: only(presences).waits == "waiting for room in queue celery", "it reports the queue", 5)
    assert only(presences).ready
    client.delete(f"broker:{queues.prefix}celery")
    eventually(lambda: not only(presences).waits, "it waits no longer", 5)
    eventually(
        lambda: queues.tasks() == {"t.all a.b n2": 1}, "dispatch continues"
    )  # the event is not dispatched yet when waiting ends


def test_a_subscriber_tells_its_problems(
    register_handlers,
    often: None,
    start_subscriber: StartSubscriber,
    presences: PresenceStore,
    far_app: Celery,
    proxy: Proxy,
) -> None:
    """While its broker is unavailable, a subscriber is alive but not ready and reports why; then it is ready again."""
    register_handlers("t.all")
    start_subscriber(app=far_app)
    eventually(lambda: only(presences).ready, "the subscriber is ready", 10)
    proxy.refuse()
    found = eventually(lambda: only(presences).problems and only(presences), "the problem is reported", 10)
    assert found.alive
    assert not found.ready
    assert found.problems[0].startswith("broker: ")
    proxy.heal()
    eventually(lambda: only(presences).ready, "the subscriber is ready again", 10)


# Records in Redis, also of other writers


@pytest.fixture
def each(each_server: RedisServer, prefix: str) -> Iterator[PresenceStore]:
    settings = BridgeSettings.load(redis_url=each_server.url, channel_prefix=prefix, group="tests")
    with connect(settings) as connected:
        yield Storage(connected, settings).presence


STRANGE: dict[str, str] = {
    "empty": "",
    "no time": "{}",
    "no json": "1 {",
    "no object": "1 [1]",
    "null": "1 null",
    "no name": '1 {"host": "h"}',
    "a name of another type": '1 {"name": 7}',
    "no number": 'x {"name": "x"}',
    "binary": "\udcff\udcfe",
    "a number": "1 7",
}


def test_what_others_write_breaks_nothing(each: PresenceStore) -> None:
    """Unknown fields are ignored, and invalid records are neither listed nor prevent a subscriber from reporting."""
    client, key = each._client, each._key
    for name, text in STRANGE.items():
        client.hset(key, name, text.encode(errors="surrogateescape"))
    now_ms = client.time()[0] * 1000
    newer = {"name": "newer", "host": "h", "mood": {"deep": 1}, "alive": True, "none": None, "problems": "no list"}
    client.hset(key, "newer", f"{now_ms} {json.dumps(newer)}")
    client.hset(key, "older", f'{now_ms} {{"name": "older"}}')
    found = each.all()
    assert [(one.name, one.host, one.problems, one.ready) for one in found] == [
        ("newer", "h", [], True),
        ("older", "", [], True),
    ]
    each.report(Presence("here"))
    assert [one.name for one in each.all()] == ["here", "newer", "older"]
    assert client.hlen(key) == 3, "what is older than all memory is gone"


def test_those_that_went_without_a_word_are_forgotten(each: PresenceStore) -> None:
    """A subscriber that crashed is forgotten after ten minutes; the key expires that long after the last report."""
    client, key = each._client, each._key
    now_ms = client.time()[0] * 1000
    for name, ago_s in (("lately", 500), ("long ago", 700)):
        client.hset(key, name, f'{now_ms - ago_s * 1000} {{"name": "{name}"}}')
    each.report(Presence("here"))
    assert [(one.name, one.alive) for one in each.all()] == [("here", True), ("lately", False)]
    assert 590_000 < client.pttl(key) <= 600_000


def test_what_is_said_is_what_is_read(each: PresenceStore) -> None:
    """Every field that is reported is read back; the latest report of a subscriber counts."""
    said = Presence("one", "host", ["a", "b"], "waits", 2.5, 77, "http://x")
    each.report(Presence("one"))
    each.report(said)
    (found,) = each.all()
    assert vars(found) | {"seen_s": 0.0} == vars(said)
    assert 0 <= found.seen_s < 1


def test_a_subscriber_that_has_stopped(each: PresenceStore) -> None:
    """It is remembered for a minute with its handlers, but not as alive; then the next report of another removes it."""
    client, key, handlers = each._client, each._key, {"t.a": ["a.*"]}
    each.report(Presence("one", handlers=handlers))
    for _ in range(2):
        each.leave(Presence("one", handlers=handlers))
        (found,) = each.all()
        assert (found.stopped, found.alive, found.ready, found.handlers) == (True, False, False, handlers)
    for ago_s, left in ((59, ["one", "two"]), (61, ["two"])):
        report = client.hget(key, "one").partition(b" ")[2]
        client.hset(key, "one", b"%d %b" % ((client.time()[0] - ago_s) * 1000, report))
        each.report(Presence("two"))
        assert [one.name for one in each.all()] == left


def test_one_whose_last_words_quote_the_mark_of_the_stopped(each: PresenceStore) -> None:
    """The text of a problem is not taken for a field of the report: the crashed subscriber is still shown."""
    client, key = each._client, each._key
    each.report(Presence("one", problems=['"stopped": true', 'x "stopped": true']))
    report = client.hget(key, "one").partition(b" ")[2]
    client.hset(key, "one", b"%d %b" % ((client.time()[0] - 100) * 1000, report))
    each.report(Presence("two"))
    assert [one.name for one in each.all()] == ["one", "two"]

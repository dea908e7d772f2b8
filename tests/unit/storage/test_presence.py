"""Which subscribers live, and what they say of themselves."""

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
    """Subscribers in this process say how they are, and find it out, many times a second."""
    monkeypatch.setattr(monitoring, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(health, "_KEEP_BROKER_S", 0.1)


def only(presences: PresenceStore) -> Presence:
    """The one subscriber; before it has said anything, one without a name, which is not ready."""
    (one,) = presences.all() or [Presence("", problems=["has said nothing yet"])]
    return one


def test_a_live_subscriber_is_ready(
    register_handlers, start_subscriber: StartSubscriber, presences: PresenceStore
) -> None:
    """It is listed as soon as it runs, and ready once it does its work; a clean stop removes it at once."""
    register_handlers("t.all")
    subscriber = start_subscriber("one")
    first = eventually(lambda: only(presences).name and only(presences), "it says that it lives", 10)
    assert (first.name, first.host, first.alive) == ("one", socket.gethostname(), True)
    ready = eventually(lambda: only(presences).ready and only(presences), "it is ready", 5)
    assert (ready.problems, ready.waits, ready.metrics, ready.gap_ms) == ([], "", "", 0)
    subscriber.stop()
    assert presences.all() == []


def test_every_subscriber_of_a_group_speaks_for_itself(
    register_handlers, start_subscriber: StartSubscriber, presences: PresenceStore
) -> None:
    """Two are two, by name; another group is another list; the address of the metrics is theirs."""
    register_handlers("t.all")
    start_subscriber("two", metrics_port=free_port())
    start_subscriber("one")
    start_subscriber("three", group="other")
    found = eventually(lambda: len(presences.all()) == 2 and presences.all(), "both speak", 5)
    assert [one.name for one in found] == ["one", "two"]
    assert found[1].metrics.startswith("http://127.0.0.1:")


def test_a_subscriber_tells_its_rate(
    register_handlers, often: None, start_subscriber: StartSubscriber, presences: PresenceStore, bus: EventBus
) -> None:
    """Task messages a second while events come; nothing again when they end."""
    register_handlers("t.all", "t.exact")
    start_subscriber()
    eventually(lambda: bus.publish("dream.created") and only(presences).dispatched_per_s > 0, "a rate", 10)
    eventually(lambda: only(presences).dispatched_per_s == 0, "none", 5)


def test_a_subscriber_tells_when_events_may_have_been_missed(
    register_handlers,
    often: None,
    start_subscriber: StartSubscriber,
    presences: PresenceStore,
    client: Redis,
    settings: BridgeSettings,
) -> None:
    """The moment of the last gap on the channels, in ms."""
    register_handlers("t.all")
    start_subscriber()
    before_ms = client.time()[0] * 1000
    for connection in client.client_list():
        if connection["name"] == settings.client_name and int(connection["psub"]):
            client.client_kill_filter(_id=connection["id"])
    told = eventually(lambda: only(presences).gap_ms, "the gap is told", 10)
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
    """A full queue is no problem of the subscriber, so it stays ready, and says which queue it is."""
    register_handlers("t.all")
    start_subscriber(max_queue_length=2)
    eventually(lambda: only(presences).ready, "it is ready", 5)
    for number in range(2):
        bus.publish("a.b", id=f"n{number}")
    eventually(lambda: queues.length() == 2, "the queue is full")
    bus.publish("a.b", id="n2")
    eventually(lambda: only(presences).waits == "waiting for room in queue celery", "it says so", 5)
    assert only(presences).ready
    client.delete(f"broker:{queues.prefix}celery")
    eventually(lambda: not only(presences).waits, "it waits no more", 5)
    eventually(lambda: queues.tasks() == {"t.all a.b n2": 1}, "it goes on")  # which it has yet to do by then


def test_a_subscriber_tells_its_problems(
    register_handlers,
    often: None,
    start_subscriber: StartSubscriber,
    presences: PresenceStore,
    far_app: Celery,
    proxy: Proxy,
) -> None:
    """Whose broker is away is alive and not ready, and says why; then it is ready again."""
    register_handlers("t.all")
    start_subscriber(app=far_app)
    eventually(lambda: only(presences).ready, "ready", 10)
    proxy.refuse()
    found = eventually(lambda: only(presences).problems and only(presences), "the problem", 10)
    assert found.alive
    assert not found.ready
    assert found.problems[0].startswith("broker: ")
    proxy.heal()
    eventually(lambda: only(presences).ready, "ready again", 10)


# What is kept in Redis, whoever wrote it


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
    """Fields of another version are passed over, rubbish is not listed, and keeps nobody from saying that it lives."""
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
    """After ten minutes, or with the whole key when nobody is left."""
    client, key = each._client, each._key
    now_ms = client.time()[0] * 1000
    for name, ago_s in (("lately", 500), ("long ago", 700)):
        client.hset(key, name, f'{now_ms - ago_s * 1000} {{"name": "{name}"}}')
    each.report(Presence("here"))
    assert [(one.name, one.alive) for one in each.all()] == [("here", True), ("lately", False)]
    assert 590_000 < client.pttl(key) <= 600_000


def test_what_is_said_is_what_is_read(each: PresenceStore) -> None:
    """Every field comes back; the last word of a subscriber counts."""
    said = Presence("one", "host", ["a", "b"], "waits", 2.5, 77, "http://x")
    each.report(Presence("one"))
    each.report(said)
    (found,) = each.all()
    assert vars(found) | {"seen_s": 0.0} == vars(said)
    assert 0 <= found.seen_s < 1
    each.leave("one")
    each.leave("one")
    assert each.all() == []

"""``bus status``: the state of the bus and its consumer groups, within seconds."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.storage.queue_sample import QueueHistory, QueueRecord, QueueSample, QueueStatus
from bridge.storage.storage import Storage
from bridge.subscriber.monitoring import health
from bridge.subscriber.monitoring import reporter as monitoring
from bridge.testing.redis_server import RedisServer
from tests.support.apps import Invoke, StartSubscriber
from tests.support.proxy import Proxy
from tests.support.status import fill, table, told
from tests.support.waiting import eventually

SUBSCRIBER = {
    "name", "host", "problems", "waits", "dispatched_per_s", "gap_ms", "metrics", "handlers", "seen_s",
    "alive", "ready",
}  # fmt: skip
GROUP = {
    "name", "backlog", "exact", "oldest_s", "pending", "last_ms", "in_flight", "overdue", "dead_letters",
    "dead_letters_written", "dead_letters_evicted", "subscribers", "dispatched_per_s", "alive", "handler_differences",
    "queues",
}  # fmt: skip


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers in this process check and report their status many times a second."""
    monkeypatch.setattr(monitoring, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(health, "_KEEP_BROKER_S", 0.1)


def subscriber(invoke: Invoke) -> dict[str, Any]:
    """Return the only subscriber of the output for programs, after its first report."""

    def subscribers() -> list[dict[str, Any]]:
        (group,) = told(invoke)["groups"]
        return list(group["subscribers"])

    (one,) = eventually(subscribers, "the subscriber is listed")
    return dict(one)


@pytest.fixture
def busy(client: Redis, settings: BridgeSettings, bus: EventBus, keys: Keys) -> None:
    """A group with a backlog, tasks, dead letters and subscribers, and another group that is idle."""
    fill(client, settings, bus, keys)


def test_what_programs_get(
    invoke: Invoke, busy: None, client: Redis, keys: Keys, settings: BridgeSettings, server: RedisServer
) -> None:
    """The output is one object: time and settings of the server, the journal, and all groups with their subscribers."""
    found = told(invoke)
    assert set(found) == {"at_ms", "group", "server", "journal", "groups"}
    now_ms = client.time()[0] * 1000
    assert now_ms - 10_000 < found["at_ms"] < now_ms + 2000
    assert found["group"] == "tests"
    wanted = {"appendonly": "no", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
    assert wanted.items() <= found["server"].items()
    (first, _), *_, (last, _) = client.xrange(keys.journal)
    assert found["journal"] == {"entries": 10, "first_ms": int(first[:13]), "last_ms": int(last[:13])}
    idle, tests = found["groups"]
    assert set(idle) == set(tests) == GROUP
    assert (idle["name"], idle["backlog"], idle["oldest_s"], idle["alive"], idle["pending"]) == ("idle", 0, None, 0, {})
    numbers = [
        tests[name] for name in ("backlog", "in_flight", "overdue", "dead_letters", "dead_letters_written", "alive")
    ]
    assert numbers == [10, 6, 1, 1, 1, 3]
    assert tests["pending"] == {"silent": 3}
    assert tests["oldest_s"] == (found["at_ms"] - int(first[:13])) / 1000
    assert (tests["exact"], tests["dispatched_per_s"]) == (True, 2.5)
    assert all(set(subscriber) == SUBSCRIBER for subscriber in tests["subscribers"])
    states = {one["name"]: (one["alive"], one["ready"], one["problems"], one["waits"]) for one in tests["subscribers"]}
    assert states == {
        "lost": (False, False, [], ""),
        "tired": (True, False, ["cannot", "will not"], ""),
        "waiting": (True, True, [], "queue celery is full"),
        "well": (True, True, [], ""),
    }


def test_a_bus_that_nobody_has_used(invoke: Invoke) -> None:
    """A bus without a journal and groups is not an error and is reported."""
    lines = invoke("status").stdout.splitlines()
    assert lines[1].startswith("journal  0 entries of test:")
    assert lines[2:] == ["group    tests does not exist: no subscriber of this application has run yet"]
    found = told(invoke)
    assert (found["groups"], found["journal"]) == ([], {"entries": 0, "first_ms": 0, "last_ms": 0})


def test_a_group_of_others_only(invoke: Invoke, client: Redis, bus: EventBus, keys: Keys) -> None:
    """Groups of other applications are shown, and our group is reported as missing."""
    bus.publish("a.b")
    client.xgroup_create(keys.journal, "others", id="0")
    text = invoke("status").stdout
    assert "group    tests does not exist" in text
    assert [row[:2] for row in table(text, "GROUP")] == [["others", "1"]]


# With real subscribers


def test_a_queue_that_is_full(
    invoke: Invoke, start_subscriber: StartSubscriber, often: None, bus: EventBus, client: Redis, prefix: str
) -> None:
    """While a queue is full, the backlog grows, and the subscriber stays ready and reports it; then it continues."""
    start_subscriber("one", max_queue_length=5, batch_size=5)
    bus.publish_many([Event(type="dream.created") for _ in range(40)])
    eventually(lambda: subscriber(invoke)["waits"] and subscriber(invoke)["ready"], "the full queue is reported", 10)
    found = told(invoke)["groups"][0]
    assert 20 <= found["backlog"] <= 35
    assert found["in_flight"] == 40 - found["backlog"]
    assert found["oldest_s"] > 0
    (row,) = table(invoke("status").stdout, "SUBSCRIBER ")
    assert "queue celery" in " ".join(row)

    def worked_off() -> bool:
        client.delete(f"broker:{prefix}celery")
        return bool(told(invoke)["groups"][0]["backlog"] == 0)

    eventually(worked_off, "the backlog is dispatched")


def test_a_subscriber_without_its_broker(
    invoke: Invoke, start_subscriber: StartSubscriber, often: None, proxy: Proxy, far_app: Celery
) -> None:
    """A subscriber without its broker is alive but not ready, and its status contains the reason."""
    start_subscriber("one", app=far_app)
    proxy.refuse()
    eventually(lambda: "broker: " in " ".join(subscriber(invoke)["problems"]), "the problem is reported", 10)
    assert (subscriber(invoke)["alive"], subscriber(invoke)["ready"]) == (True, False)
    assert "broker: " in invoke("status").stdout


# Server information and untrusted data


def test_a_user_who_may_not_ask_the_server(
    invoke: Invoke, own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without permission for INFO and CONFIG, their settings are unknown, and everything else is shown."""
    with Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL SETUSER bus on >s3cret ~* &* +@all -info -config")
    monkeypatch.setenv("REDIS_URL", own_server.url.replace("//", "//bus:s3cret@"))
    text = invoke("status").stdout
    assert "  Redis (unknown version), appendonly unknown, appendfsync unknown, maxmemory unknown" in text
    assert "journal  0 entries" in text
    assert "s3cret" not in text
    assert told(invoke)["server"] == {}


def test_a_durable_server_is_told(invoke: Invoke, own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings shown are those of the server."""
    monkeypatch.setenv("REDIS_URL", own_server.url)
    with Redis.from_url(own_server.url) as admin:
        admin.config_set("maxmemory", 100_000_000)
        admin.config_set("maxmemory-policy", "allkeys-lru")
    text = invoke("status").stdout
    assert "appendonly yes, appendfsync always, maxmemory 100000000, maxmemory-policy allkeys-lru" in text


def test_what_others_wrote_commands_nothing(
    invoke: Invoke, client: Redis, keys: Keys, settings: BridgeSettings
) -> None:
    """Control characters in names are escaped, and invalid subscriber records are left out."""
    evil = "\x1b[2J[red]\r\x07"
    client.xgroup_create(keys.journal, evil, id="0", mkstream=True)
    client.xgroup_createconsumer(keys.journal, evil, evil)
    theirs = settings.model_copy(update={"group": evil})
    Storage(client, theirs).presence.report(Presence(f"one {evil}", problems=[evil], waits=evil))
    for rubbish in ("", "x", "1 {", "1 []", '1 {"name": 7}', "x {}", "99999999999999999999 {}"):
        client.hset(keys.subscribers(evil), f"r{rubbish}", rubbish)
    text = invoke("status").stdout
    assert not {"\x1b", "\r", "\x07"} & set(text)
    assert text.count(r"\x1b[2J[red]\r\x07") == 6
    assert invoke("status", "--json").stdout.isascii()


def test_a_bus_that_is_cut(invoke: Invoke, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the bus refuses connections or hangs, the status is 3 within seconds; afterwards it is 0 again."""
    monkeypatch.setenv("REDIS_URL", proxy.url)
    assert told(invoke)["groups"] == []
    for cut in (proxy.refuse, proxy.blackhole):
        cut()
        begun_s = time.monotonic()
        assert invoke("status", "--json", expect=3).stdout == ""
        assert time.monotonic() - begun_s < 5
        proxy.heal()
    assert told(invoke)["groups"] == []


def measured(storage: Storage, *queues: QueueStatus, age_s: int = 0) -> None:
    """Make what a subscriber has measured."""
    at_ms = (int(storage.client.time()[0]) - age_s) * 1000
    storage.queue_samples.write(QueueSample(at_ms, tuple(QueueRecord(queue, QueueHistory()) for queue in queues)))


#: What is known of a queue, and its row in the table: waiting, oldest, consumers and state.
QUEUES = {
    "nobody": (QueueStatus("nobody", 6, 65.0, 0, 60.0, problem="no_consumer"), "6 65.0 s 0 no worker takes from it"),
    "unused": (QueueStatus("unused", 0, 0.0, 0, 0.0), "0 - 0 no worker takes from it"),
    "stalled": (
        QueueStatus("stalled", 9, 400.0, 2, 390.0, full=True, problem="stalled"),
        "9 7 min 2 nothing has left it for 6 min; full: dispatch waits",
    ),
    "full": (QueueStatus("full", 9, 1.0, 2, 0.0, full=True), "9 1.0 s 2 full: dispatch waits"),
    "busy": (QueueStatus("busy", 1_000_000, 7300.0, 2, 0.0), "1000000 2 h 2 moves"),
    "old": (QueueStatus("old", 3, None, None, 4.0), "3 - ? moves"),
    "idle": (QueueStatus("idle", 0, 0.0, 2, 0.0), "0 - 2 empty"),
    "other": (QueueStatus("other", consumers=1), "? - 1 not measured"),
}


def test_queues(invoke: Invoke, busy: None, client: Redis, settings: BridgeSettings) -> None:
    """Each queue has a row with what is known of it; without a recent measurement there is no table."""
    storage = Storage(client, settings)
    assert [group["queues"] for group in told(invoke)["groups"]] == [None, None]
    measured(storage, *(status for status, _ in QUEUES.values()))
    rows = {row[0]: row[1:] for row in table(invoke("status").stdout, "QUEUE")}
    assert rows == {name: ["tests", *text.split()] for name, (_, text) in QUEUES.items()}
    (shown,) = [group["queues"] for group in told(invoke)["groups"] if group["name"] == "tests"]
    assert shown == [asdict(status) for status, _ in QUEUES.values()]
    measured(storage, QUEUES["busy"][0], age_s=60)
    assert "QUEUE" not in invoke("status").stdout

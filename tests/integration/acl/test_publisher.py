"""The permissions of a program that only publishes."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from bridge import BusUnavailable, Event, EventBus
from bridge.errors import NotReplicated
from bridge.operations.acl.verify import missing_permissions
from bridge.redis.client import connect
from bridge.storage.keys import Keys
from bridge.storage.lua import provide_scripts
from bridge.subscriber.subscriber import Subscriber
from tests.support.restricted_redis import RestrictedRedis

REPLICATED = {"wait_replicas": 1, "wait_replicas_ms": 1}


def fill_indexes(restricted_redis: RestrictedRedis) -> None:
    """Make two events look as if they had caused many others: one of the indexes is trimmed, the other one removed."""
    for cause, count in (("one", 60), ("two", 1001)):
        members = {f"c{number}": 1 for number in range(count)}
        restricted_redis.admin.zadd(Keys(restricted_redis.prefix).consequences(cause), members)


def publish(restricted_redis: RestrictedRedis, user: str) -> None:
    """Publish in every way that the bridge offers."""
    with EventBus(restricted_redis.settings(user)) as bus:
        assert not bus.publish("dream.created", {"n": 1}, id="one").duplicate
        assert bus.publish("dream.created", {"n": 1}, id="one").duplicate
        caused = [Event(type="dream.created", id=cause).child("dream.told") for cause in ("one", "two")]
        bus.publish_many([*caused, Event(type="dream.created", id="three")])


def publish_raw(restricted_redis: RestrictedRedis, user: str) -> None:
    """Publish like a program that does not use the bridge."""
    keys, event = Keys(restricted_redis.prefix), Event(type="dream.created", id="raw").encode()
    with Redis.from_url(restricted_redis.url(user), client_name="raw") as client:
        client.ping()
        client.set(keys.event("raw"), event, px=60_000)
        client.execute_command("SETEX", keys.event("raw"), 60, event)
        client.publish(keys.channel("dream.created"), event)


def publish_waiting(restricted_redis: RestrictedRedis, user: str) -> None:
    """Publish and wait for replicas, which do not exist. A duplicate waits as well."""
    with EventBus(restricted_redis.settings(user, **REPLICATED)) as bus:
        for cause in ("one", "two"):
            with pytest.raises(NotReplicated):
                bus.publish(Event(type="dream.created", id=cause).child("dream.told"))
            with pytest.raises(NotReplicated):
                bus.publish_many([Event(type="dream.created", id=event_id) for event_id in ("two", "three")])


WAYS = [(publish, [], {}), (publish_raw, ["--no-bridge"], {}), (publish_waiting, [], REPLICATED)]


@pytest.mark.parametrize(("do", "arguments", "settings"), WAYS, ids=["bridge", "raw", "waiting"])
def test_a_publisher_has_what_it_needs_and_no_more(
    restricted_redis: RestrictedRedis, do, arguments: list[str], settings: dict[str, int]
) -> None:
    """Publishing is allowed, and each permission is needed: without it, some command would be refused."""
    rules = restricted_redis.grant("shop", "publisher", *arguments, **settings)
    fill_indexes(restricted_redis)
    with restricted_redis.recorded() as commands:
        provide_scripts(restricted_redis.admin)  # as a subscriber does
        do(restricted_redis, "shop")
    assert restricted_redis.refusals() == set()
    restricted_redis.judge(rules, [words for words in commands if words[0] != b"SCRIPT"])


def test_it_checks_its_permissions_with_a_script_of_a_subscriber(restricted_redis: RestrictedRedis) -> None:
    """Without a subscriber, the check says what is missing."""
    restricted_redis.grant("shop", "publisher")
    with connect(restricted_redis.settings("shop")) as client:
        restricted_redis.admin.script_flush()
        (missing,) = missing_permissions(client, restricted_redis.settings("shop"), "publisher")
        assert "running subscribers load it" in missing
        provide_scripts(restricted_redis.admin)
        assert missing_permissions(client, restricted_redis.settings("shop"), "publisher") == []
        assert "XADD" in " ".join(missing_permissions(client, restricted_redis.settings("shop"), "subscriber"))


def test_scripts_that_are_lost_come_back_with_a_subscriber(restricted_redis: RestrictedRedis) -> None:
    """After SCRIPT FLUSH, which is like a restart, publishing waits for the next report of a subscriber."""
    restricted_redis.grant("shop", "publisher")
    subscriber = Subscriber(restricted_redis.app, restricted_redis.settings(), "one")
    subscriber.start()
    try:
        assert subscriber.ready.wait(20)
        with EventBus(restricted_redis.settings("shop")) as bus:
            restricted_redis.admin.script_flush()
            assert not bus.publish("dream.created", id="one").duplicate
            restricted_redis.admin.script_flush()
            assert len(bus.publish_many([Event(type="dream.created", id=f"n{number}") for number in range(3)])) == 3
    finally:
        subscriber.stop()
    assert any("script|load" in text for text in restricted_redis.refusals()), "the scripts were lost"


def test_without_a_subscriber_it_says_what_is_missing(restricted_redis: RestrictedRedis) -> None:
    """The error names the script that is not loaded, and who loads it."""
    restricted_redis.grant("shop", "publisher")
    restricted_redis.admin.script_flush()
    with (
        EventBus(restricted_redis.settings("shop")) as bus,
        pytest.raises(BusUnavailable, match=r"script publish is not loaded.*Start a subscriber of this version"),
    ):
        bus.publish("dream.created")


def test_it_loads_no_script(restricted_redis: RestrictedRedis) -> None:
    """A script that never ends would block the server: no publisher can load one."""
    restricted_redis.grant("shop", "publisher")
    for words in (
        ("SCRIPT", "LOAD", "return 1"),
        ("EVAL", "return 1", 0),
        ("FUNCTION", "LOAD", "x"),
        ("SCRIPT", "FLUSH"),
    ):
        with Redis.from_url(restricted_redis.url("shop")) as client, pytest.raises(NoPermissionError):
            client.execute_command(*words)


@pytest.mark.parametrize("arguments", [[], ["--no-bridge"]], ids=["bridge", "raw"])
def test_it_reaches_nothing_else(restricted_redis: RestrictedRedis, arguments: list[str]) -> None:
    """Task queues, events of other publishers and other buses are refused, to commands and to scripts."""
    restricted_redis.grant("shop", "publisher", *arguments)
    keys, other = Keys(restricted_redis.prefix), Keys("other:")
    queue, event = f"broker:{restricted_redis.prefix}celery", keys.event("e")
    restricted_redis.admin.set(event, "secret", ex=60)
    tries = [
        *(("LPUSH", name, "{}") for name in (queue, "celery", "celery\x06\x163", "unacked")),
        *(("RPUSH", queue, "{}"), ("LRANGE", queue, 0, -1), ("BRPOP", queue, 0.01), ("DEL", queue), ("SET", queue, 1)),
        *(
            ("PUBLISH", f"broker:{restricted_redis.prefix}/0.celery.pidbox", "{}"),
            ("PUBLISH", "/0.celery.pidbox", "{}"),
        ),
        *(("GET", event), ("SET", event, "x", "GET"), ("GETRANGE", event, 0, -1), ("DEL", event), ("APPEND", event, 1)),
        *(("XRANGE", keys.journal, "-", "+"), ("XREAD", "STREAMS", keys.journal, 0), ("DEL", keys.journal)),
        *(("XADD", other.journal, "*", "id", "e"), ("SET", other.event("e"), "x"), ("GET", other.event("e"))),
        *(("SET", other.seen("e"), "x"), ("PUBLISH", other.channel("a.b"), "x"), ("PUBLISH", keys.heartbeat, "x")),
        *(("SET", keys.done("t"), "x"), ("HSET", keys.lease("t"), "f", "v"), ("XADD", keys.dead("t"), "*", "f", "v")),
        *(("PSUBSCRIBE", "*"), ("PSUBSCRIBE", keys.all_channels), ("SUBSCRIBE", keys.channel("a.b"))),
        *(("KEYS", "*"), ("SCAN", 0), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("INFO",), ("MONITOR",)),
    ]
    for words in tries:
        with Redis.from_url(restricted_redis.url("shop")) as client, pytest.raises(NoPermissionError):
            client.execute_command(*words)
    with Redis.from_url(restricted_redis.url("shop")) as client:
        for words in tries[:24]:
            text = f"return redis.call({', '.join(repr(str(word)) for word in words)})"
            with pytest.raises(ResponseError, match=r"permission|can't (run|access|publish)|not allowed from script"):
                client.evalsha(restricted_redis.admin.script_load(text), 0)
    assert restricted_redis.admin.get(event) == b"secret"
    assert restricted_redis.admin.exists(queue, other.journal, other.event("e"), keys.done("t")) == 0

"""``bus acl``: the rules it prints for servers, users and versions."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from redis import Redis
from redis.exceptions import NoPermissionError

from bridge import EventBus
from bridge.errors import BusUnavailable
from bridge.operations.acl.bus import ROLES
from bridge.operations.acl.celery import BrokerKeys
from bridge.storage.keys import Keys
from bridge.storage.lua import provide_scripts
from tests.support.requirements import program
from tests.support.restricted_redis import RestrictedRedis


def lines(restricted_redis: RestrictedRedis, *arguments: str, **how: Any) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in restricted_redis.invoke("acl", *arguments, "--json", **how).stdout.splitlines()
    ]


def rules(restricted_redis: RestrictedRedis, *arguments: str, **how: Any) -> str:
    """Return the rules of the line for the bus."""
    return " ".join(lines(restricted_redis, *arguments, "--server", "bus", **how)[0]["rules"])


# Servers and users


def test_a_server_gets_one_line(restricted_redis: RestrictedRedis) -> None:
    """One line covers a server that is bus, broker and result backend; stdout has only lines, without passwords."""
    result = restricted_redis.invoke("acl", "worker")
    assert result.stdout.startswith("ACL SETUSER tests-worker on resetkeys resetchannels nocommands clearselectors +")
    assert result.stdout.count("\n") == 1
    version = ".".join(restricted_redis.admin.info()["redis_version"].split(".")[:2])
    assert result.stderr == f"bus, broker, results at 127.0.0.1:{restricted_redis.server.port}, Redis {version}\n"
    assert ">" not in result.stdout
    assert restricted_redis.invoke("acl", "worker", "--server", "results").stdout == result.stdout


def test_servers_apart_have_users_of_their_own(restricted_redis: RestrictedRedis) -> None:
    """Separate servers have separate users, so no line resets another one if two addresses reach the same server."""
    broker = "redis://me:s3cret@127.0.0.1:1/3"
    assert [
        (line["user"], line["for"], line["at"], line["version"])
        for line in lines(restricted_redis, "worker", broker=broker)
    ] == [
        (
            "tests-worker",
            ["bus", "results"],
            f"127.0.0.1:{restricted_redis.server.port}",
            lines(restricted_redis, "worker")[0]["version"],
        ),
        ("tests-worker-broker", ["broker"], "127.0.0.1:1", ""),
    ]
    assert "version unknown" in restricted_redis.invoke("acl", "worker", broker=broker).stderr
    (line,) = lines(restricted_redis, "worker", "--server", "broker", broker=broker)
    assert {"+select"} < set(line["rules"])
    assert f"(+psubscribe +publish &broker:{restricted_redis.prefix}/3.celery.pidbox)" in line["rules"]
    assert [line["for"] for line in lines(restricted_redis, "worker", broker="amqp://127.0.0.1:1")] == [
        ["bus", "results"]
    ]
    assert (
        "needs no permissions on the broker"
        in restricted_redis.invoke("acl", "publisher", "--server", "broker", expect=1).output
    )


def test_redis_cli_takes_a_line_as_it_is(restricted_redis: RestrictedRedis) -> None:
    """redis-cli accepts a line repeatedly: it adds no password and keeps an existing one."""
    command = [program("redis-cli"), "-p", str(restricted_redis.server.port)]
    line = restricted_redis.invoke("acl", "operator", "--user", "shop").stdout
    for passwords in (0, 1):
        run = subprocess.run(command, input=line, capture_output=True, text=True, check=True)
        assert run.stdout == "OK\n"
        assert len(restricted_redis.admin.acl_getuser("shop")["passwords"]) == passwords
        restricted_redis.admin.execute_command("ACL SETUSER shop >s3cret")


def test_a_server_that_is_too_old(restricted_redis: RestrictedRedis) -> None:
    """Redis 6.2 is refused, and client|setinfo is granted only from 7.2 on, the first version that has it."""
    output = restricted_redis.invoke("acl", "worker", "--redis-version", "6.2", expect=1).output
    assert "is Redis 6.2, which has no ACL selectors; these lines require 7.0" in output
    assert "+client|setinfo" not in rules(restricted_redis, "worker", "--redis-version", "7.0")
    assert "+client|setinfo" in rules(restricted_redis, "worker", "--redis-version", "7.2.4")
    assert "is not a version" in restricted_redis.invoke("acl", "worker", "--redis-version", "new", expect=2).output


# Rules that depend on settings


def test_settings_have_a_say(restricted_redis: RestrictedRedis) -> None:
    """Disabled features need no permissions, and enabled ones need more."""
    assert "&" not in rules(restricted_redis, "subscriber", enable_pubsub=False).replace(
        f"&broker:{restricted_redis.prefix}", ""
    )
    assert "scan" not in rules(restricted_redis, "subscriber", enable_pubsub=False)
    broadcasting = rules(restricted_redis, "publisher", "--redis-version", "7.0", enable_persistence=False)
    assert broadcasting.split("clearselectors ")[1] == f"+client|setname +ping (+publish &{restricted_redis.prefix}*)"
    assert "+wait" in rules(restricted_redis, "publisher", wait_replicas=1)
    assert ":}rate:*" in rules(restricted_redis, "subscriber", max_events_per_s_per_source=5)
    assert "+select " in rules(restricted_redis, "publisher", redis_url=restricted_redis.url().replace("/0", "/3"))
    for text in ("+wait", ":}rate:", "+select"):
        assert not any(text in rules(restricted_redis, role) for role in ROLES)
    listening = rules(restricted_redis, "subscriber", listen_types='["dream.*", "user.?"]')
    assert f"(+psubscribe &{restricted_redis.prefix}dream.* &{restricted_redis.prefix}user.?)" in listening
    assert f"(+psubscribe &{restricted_redis.prefix}*)" in rules(
        restricted_redis, "operator", listen_types='["dream.*"]'
    )
    assert "dead:other)" in rules(restricted_redis, "worker", group="other")
    assert lines(restricted_redis, "worker", group="other")[0]["user"] == "other-worker"


def test_a_prefix_is_taken_literally(restricted_redis: RestrictedRedis) -> None:
    """Glob characters in a prefix match only themselves; a prefix that no rule can contain is refused."""
    restricted_redis.prefix = f"sh?p[1]*\\:{restricted_redis.prefix}"
    restricted_redis.grant("shop", "publisher")
    provide_scripts(restricted_redis.admin)
    with EventBus(restricted_redis.settings("shop")) as bus:
        bus.publish("dream.created", id="e")
    other = Keys(restricted_redis.prefix.replace("?", "o").replace("*", "any"))
    with Redis.from_url(restricted_redis.url("shop")) as client:
        for words in (("SET", other.event("e"), "x"), ("PUBLISH", other.channel("a.b"), "x")):
            with pytest.raises(NoPermissionError):
                client.execute_command(*words)
    restricted_redis.prefix = "it's:"
    assert "cannot be written in an ACL rule" in restricted_redis.invoke("acl", "worker", expect=2).output


def test_queues_are_those_of_the_application(restricted_redis: RestrictedRedis, app: Celery) -> None:
    """Queues come from the configuration, the routes of Celery and of the bridge, and --queue, with priorities."""
    restricted_redis.app.conf.task_queues = [Queue("plain"), Queue("topical", Exchange("news", type="topic"), "a.#")]
    restricted_redis.app.conf.task_routes = {"t.plain": {"queue": "by-celery"}}
    restricted_redis.app.conf.task_create_missing_queues = True
    found = rules(restricted_redis, "subscriber", "--queue", "a (b)", routes='{"dream.*": {"queue": "by-bridge"}}')
    for queue in ("plain", "topical", "by-celery", "by-bridge", "a??b?"):
        assert f"~broker:{restricted_redis.prefix}{queue} " in found, queue
        assert f"~broker:{restricted_redis.prefix}{queue}??[369]" in found, queue
    assert "+smembers" in found  # for an exchange with bindings


def test_steps_of_priorities(app: Celery) -> None:
    """The lists of priorities have the names that the transport options define."""
    app.conf.broker_transport_options = {"priority_steps": [0, 5, 10], "sep": ":"}
    with app.connection_for_write() as connection:
        names = BrokerKeys(app, connection, ["q"]).tasks
    assert names == [("q", "q"), ("q?5", "q:5"), ("q?10", "q:10")]


# Missing permissions


def test_a_missing_right_is_told_with_what_gives_it(restricted_redis: RestrictedRedis) -> None:
    """Errors and ``bus check`` name missing permissions of bus and broker and how to grant them, without secrets."""
    found = restricted_redis.grant("shop", "worker")
    fewer = [rule.replace("+xadd ", "").replace("+lpush ", "") for rule in found]
    restricted_redis.set_rules("shop", fewer)
    with EventBus(restricted_redis.settings("shop")) as bus, pytest.raises(BusUnavailable) as caught:
        bus.publish("dream.created")
    assert "bus acl prints for its role, with ACL SETUSER; bus check --role ROLE lists the missing ones" in str(
        caught.value
    )
    assert "s3cret" not in str(caught.value)
    output = restricted_redis.invoke("check", user="shop", expect=1).output
    keys = Keys(restricted_redis.prefix)
    for name in (keys.journal, keys.dead("tests")):
        assert f"FAIL  user shop has no permission: XADD {name}\n" in output
    for name in ("celery", "celery\\x06\\x163", "me.reply.celery.pidbox"):
        assert (
            f"FAIL  user shop of the broker has no permission: LPUSH broker:{restricted_redis.prefix}{name}\n" in output
        ), output
    assert "      -> run ACL SETUSER with the line that bus acl worker prints\n" in output
    restricted_redis.set_rules("shop", found)
    assert "may not" not in restricted_redis.invoke("check", user="shop", expect=1).output

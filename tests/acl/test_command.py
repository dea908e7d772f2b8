"""``bus acl``: for which servers, users and versions it prints lines, and what stands in them."""

from __future__ import annotations

import json
import shutil
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
from tests.acl.place import Place
from tests.conftest import missing


def lines(place: Place, *arguments: str, **how: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.say("acl", *arguments, "--json", **how).stdout.splitlines()]


def rules(place: Place, *arguments: str, **how: Any) -> str:
    """The rules of the line for the bus."""
    return " ".join(lines(place, *arguments, "--server", "bus", **how)[0]["rules"])


# Servers and users


def test_a_server_gets_one_line(place: Place) -> None:
    """Also if it is bus, broker and results; standard output has lines only, and no password is in them."""
    result = place.say("acl", "worker")
    assert result.stdout.startswith("ACL SETUSER tests-worker on resetkeys resetchannels nocommands clearselectors +")
    assert result.stdout.count("\n") == 1
    version = ".".join(place.admin.info()["redis_version"].split(".")[:2])
    assert result.stderr == f"bus, broker, results at 127.0.0.1:{place.server.port}, Redis {version}\n"
    assert ">" not in result.stdout
    assert place.say("acl", "worker", "--server", "results").stdout == result.stdout


def test_servers_apart_have_users_of_their_own(place: Place) -> None:
    """So that no line takes away what another gave, should two addresses lead to one server."""
    broker = "redis://me:s3cret@127.0.0.1:1/3"
    assert [
        (line["user"], line["for"], line["at"], line["version"]) for line in lines(place, "worker", broker=broker)
    ] == [
        ("tests-worker", ["bus", "results"], f"127.0.0.1:{place.server.port}", lines(place, "worker")[0]["version"]),
        ("tests-worker-broker", ["broker"], "127.0.0.1:1", ""),
    ]
    assert "which does not tell its version" in place.say("acl", "worker", broker=broker).stderr
    (line,) = lines(place, "worker", "--server", "broker", broker=broker)
    assert {"+select"} < set(line["rules"])
    assert f"(+psubscribe +publish &broker:{place.prefix}/3.celery.pidbox)" in line["rules"]
    assert [line["for"] for line in lines(place, "worker", broker="amqp://127.0.0.1:1")] == [["bus", "results"]]
    assert "needs nothing of the broker" in place.say("acl", "publisher", "--server", "broker", expect=1).output


def test_redis_cli_takes_a_line_as_it_is(place: Place) -> None:
    """Again and again: who has no password gets none, and who has one keeps it."""
    if (program := shutil.which("redis-cli")) is None:
        missing("redis-cli")
    line = place.say("acl", "operator", "--user", "shop").stdout
    for passwords in (0, 1):
        run = subprocess.run(
            [program, "-p", str(place.server.port)], input=line, capture_output=True, text=True, check=True
        )
        assert run.stdout == "OK\n"
        assert len(place.admin.acl_getuser("shop")["passwords"]) == passwords
        place.admin.execute_command("ACL SETUSER shop >s3cret")


def test_a_server_that_is_too_old(place: Place) -> None:
    """Redis 6.2 is told apart; clients tell what they are from 7.2 on, and no sooner version knows that right."""
    output = place.say("acl", "worker", "--redis-version", "6.2", expect=1).output
    assert "is Redis 6.2, whose users have no selectors; these lines need 7.0" in output
    assert "+client|setinfo" not in rules(place, "worker", "--redis-version", "7.0")
    assert "+client|setinfo" in rules(place, "worker", "--redis-version", "7.2.4")
    assert "is no version" in place.say("acl", "worker", "--redis-version", "new", expect=2).output


# What depends on settings


def test_settings_have_a_say(place: Place) -> None:
    """What is switched off needs no rights, what is switched on needs more."""
    assert "&" not in rules(place, "subscriber", enable_pubsub=False).replace(f"&broker:{place.prefix}", "")
    assert "scan" not in rules(place, "subscriber", enable_pubsub=False)
    broadcasting = rules(place, "publisher", "--redis-version", "7.0", enable_persistence=False)
    assert broadcasting.split("clearselectors ")[1] == f"+client|setname +ping (+publish &{place.prefix}*)"
    assert "+wait" in rules(place, "publisher", wait_replicas=1)
    assert ":}rate:*" in rules(place, "subscriber", max_events_per_s_per_source=5)
    assert "+select " in rules(place, "publisher", redis_url=place.url().replace("/0", "/3"))
    for text in ("+wait", ":}rate:", "+select"):
        assert not any(text in rules(place, role) for role in ROLES)
    listening = rules(place, "subscriber", listen_types='["dream.*", "user.?"]')
    assert f"(+psubscribe &{place.prefix}dream.* &{place.prefix}user.?)" in listening
    assert f"(+psubscribe &{place.prefix}*)" in rules(place, "operator", listen_types='["dream.*"]')
    assert "dead:other)" in rules(place, "worker", group="other")
    assert lines(place, "worker", group="other")[0]["user"] == "other-worker"


def test_a_prefix_is_taken_literally(place: Place) -> None:
    """A glob in it matches itself; one that no rule can hold is refused."""
    place.prefix = f"sh?p[1]*\\:{place.prefix}"
    place.grant("shop", "publisher")
    with EventBus(place.settings("shop")) as bus:
        bus.publish("dream.created", id="e")
    other = Keys(place.prefix.replace("?", "o").replace("*", "any"))
    with Redis.from_url(place.url("shop")) as client:
        for words in (("SET", other.event("e"), "x"), ("PUBLISH", other.channel("a.b"), "x")):
            with pytest.raises(NoPermissionError):
                client.execute_command(*words)
    place.prefix = "it's:"
    assert "no rule of an ACL can hold" in place.say("acl", "worker", expect=2).output


def test_queues_are_those_of_the_application(place: Place, app: Celery) -> None:
    """Of its configuration, its routes, those of the bridge, and those that are named; with their priorities."""
    place.app.conf.task_queues = [Queue("plain"), Queue("topical", Exchange("news", type="topic"), "a.#")]
    place.app.conf.task_routes = {"t.plain": {"queue": "by-celery"}}
    place.app.conf.task_create_missing_queues = True
    found = rules(place, "subscriber", "--queue", "a (b)", routes='{"dream.*": {"queue": "by-bridge"}}')
    for queue in ("plain", "topical", "by-celery", "by-bridge", "a??b?"):
        assert f"~broker:{place.prefix}{queue} " in found, queue
        assert f"~broker:{place.prefix}{queue}??[369]" in found, queue
    assert "+smembers" in found  # of an exchange that is more than its queue


def test_steps_of_priorities(app: Celery) -> None:
    """However the transport is told to name the lists."""
    app.conf.broker_transport_options = {"priority_steps": [0, 5, 10], "sep": ":"}
    with app.connection_for_write() as connection:
        names = BrokerKeys(app, connection, ["q"]).tasks
    assert names == [("q", "q"), ("q?5", "q:5"), ("q?10", "q:10")]


# Rights that are missing


def test_a_missing_right_is_told_with_what_gives_it(place: Place) -> None:
    """In errors, and by ``bus check``, of the bus and of the broker; nothing secret is in them."""
    found = place.grant("shop", "worker")
    fewer = [rule.replace("+xadd ", "").replace("+lpush ", "") for rule in found]
    place.set_rules("shop", fewer)
    with EventBus(place.settings("shop")) as bus, pytest.raises(BusUnavailable) as caught:
        bus.publish("dream.created")
    assert "bus acl prints for its role, with ACL SETUSER; bus check --role ROLE names what it lacks" in str(
        caught.value
    )
    assert "s3cret" not in str(caught.value)
    output = place.say("check", user="shop", expect=1).output
    keys = Keys(place.prefix)
    for name in (keys.journal, keys.dead("tests")):
        assert f"FAIL  user shop may not: XADD {name}\n" in output
    for name in ("celery", "celery\\x06\\x163", "me.reply.celery.pidbox"):
        assert f"FAIL  user shop of the broker may not: LPUSH broker:{place.prefix}{name}\n" in output, output
    assert "      -> give it what bus acl worker prints, with ACL SETUSER\n" in output
    place.set_rules("shop", found)
    assert "may not" not in place.say("check", user="shop", expect=1).output

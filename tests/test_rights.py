"""Which rights the Redis user of the bus needs: all are asked for, and nothing is changed by asking."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, rights
from bridge.connection import connect
from bridge.dead_letters import DeadLetter, DeadLetters
from bridge.devserver import RedisServer
from bridge.groups import Groups
from bridge.history import History
from bridge.keys import Keys
from bridge.ledger import Ledger
from bridge.status import read_status
from tests.conftest import ROOT, Processes, Queues, Start, eventually, make_app

APP = "tests.watching.app"
#: What redis-py says with each connection.
OF_CONNECTIONS = ["client", "select", "ping", "unsubscribe", "punsubscribe", "discard"]
#: Handy, and done without: they tell more of the server.
OPTIONAL = {"info", "config|get", "config"}
FAST = {
    "BRIDGE_LEASE_S": "1",
    "BRIDGE_REDISPATCH_AFTER_S": "2",
    "BRIDGE_UPKEEP_INTERVAL_S": "0.2",
    "BRIDGE_CLAIM_IDLE_S": "0.2",
    "BRIDGE_MAX_REDISPATCHES": "1",
}


def probed(keys: Keys) -> set[str]:
    """What is asked for, as ACL SETUSER takes it."""
    commands = [*rights._harmless(keys, "tests"), ("MULTI",), *rights._given_up(keys, True)]
    two = ("XGROUP", "XINFO", "SCRIPT")
    names = {"|".join(command[: 2 if command[0] in two else 1]).lower() for command in commands}
    return names | {"subscribe", "psubscribe"}


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


@pytest.fixture
def admin(own_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(own_server.url) as client:
        yield client


@pytest.fixture
def settings(own_server: RedisServer, prefix: str, admin: Redis, keys: Keys) -> BridgeSettings:
    """Of a user who has what is asked for, on keys and channels of this bus, and nothing else."""
    commands = [f"+{name}" for name in [*sorted(probed(keys)), *OF_CONNECTIONS]]
    patterns = [f"~{prefix}*", f"~{{{prefix}}}*", f"&{prefix}*", f"&{{{prefix}}}*"]
    admin.execute_command("ACL", "SETUSER", "bus", "reset", "on", ">secret", *patterns, *commands)
    url = own_server.url.replace("//", "//bus:secret@")
    return BridgeSettings.load(redis_url=url, channel_prefix=prefix, group="tests")


@pytest.fixture
def client(settings: BridgeSettings) -> Iterator[Redis]:
    with connect(settings) as connected:
        yield connected


def dump(client: Redis) -> dict[bytes, Any]:
    """Everything that is in a Redis, with how long it stays."""
    return {key: (client.dump(key), client.expiretime(key)) for key in client.scan_iter()}


def test_nothing_is_refused_and_nothing_changed(client: Redis, settings: BridgeSettings, admin: Redis) -> None:
    """On an empty bus and on one in use, with the group and without; what is heard on its channels is nothing."""
    assert rights.refused(client, settings) == []
    assert dump(admin) == {}
    with EventBus(settings) as bus, admin.pubsub() as pubsub:
        keys = Keys(settings.channel_prefix)
        admin.xgroup_create(keys.journal, "tests", id="0", mkstream=True)
        bus.publish_many([Event(type="a.b", id=f"n{number}") for number in range(20)])
        admin.xreadgroup("tests", "somebody", {keys.journal: ">"}, count=5)
        DeadLetters(client, settings).add(DeadLetter.of_message("json", "", "channel", b"x"))
        for group in ("tests", "bridge-check"):
            admin.incr(keys.fence(group))
            admin.zadd(keys.inflight(group), {"t": 1})
        before, groups = dump(admin), admin.xinfo_stream(keys.journal, full=True)["groups"]
        pubsub.psubscribe("*")
        assert pubsub.get_message(timeout=5)
        assert rights.refused(client, settings) == []
        assert dump(admin) == before
        assert admin.xinfo_stream(keys.journal, full=True)["groups"] == groups
        admin.publish("end", "")
        heard = eventually(lambda: pubsub.get_message(timeout=5), "a message")
        assert heard["channel"] == b"end"
    assert refusals(admin) == set()


def refusals(admin: Redis) -> set[str]:
    """What Redis has refused the user: commands, keys, channels."""
    entries: Any = admin.acl_log()
    return {f"{entry['reason']} {entry['object']} ({entry['context']})" for entry in entries}


def test_each_right_that_is_missing_is_named(client: Redis, settings: BridgeSettings, admin: Redis, keys: Keys) -> None:
    """Each command by itself, and nothing else; the connection is as before afterwards."""
    for name in sorted(probed(keys)):
        admin.execute_command("ACL", "SETUSER", "bus", f"-{name}")
        found = rights.refused(client, settings)
        spelled = name.replace("|", " ").upper()
        assert found, name
        assert all(text.startswith((f"{spelled} ", f"{spelled}:")) for text in found), (name, found)
        admin.execute_command("ACL", "SETUSER", "bus", f"+{name}")
        assert dump(admin) == {}, name
    assert rights.refused(client, settings) == []


@pytest.mark.parametrize("missing", ["~{prefix}*", "~{{{prefix}}}*", "&{prefix}*", "&{{{prefix}}}*"])
def test_keys_and_channels_that_are_missing_are_named(
    client: Redis, settings: BridgeSettings, admin: Redis, prefix: str, missing: str
) -> None:
    """Those of the wire, the bridge's own, and the channels; each is told with its name."""
    lost = missing.format(prefix=prefix)
    patterns = {f"~{prefix}*", f"~{{{prefix}}}*", f"&{prefix}*", f"&{{{prefix}}}*"} - {lost}
    admin.execute_command("ACL", "SETUSER", "bus", "resetkeys", "resetchannels", *patterns)
    found = rights.refused(client, settings)
    assert found
    assert all(f" {lost[1:-1]}" in text for text in found), found
    if lost[0] == "&":
        assert {text.split()[0] for text in found} == {"PUBLISH", "PSUBSCRIBE" if lost[1] != "{" else "SUBSCRIBE"}
        without = settings.model_copy(update={"enable_pubsub": False})
        assert rights.refused(client, without) == []


def test_a_user_is_named(client: Redis, settings: BridgeSettings, admin: Redis) -> None:
    """If Redis tells who it is; else it is the one everybody is."""
    assert rights.user_of(client) == "default"
    admin.execute_command("ACL SETUSER bus +acl|whoami")
    assert rights.user_of(client) == "bus"


def test_scripts_do_nothing_else(keys: Keys) -> None:
    """Every command in the scripts is asked for, also those of rare cases."""
    texts = [path.read_text() for path in (ROOT / "bridge" / "lua").glob("*.lua")]
    calls = {call for text in texts for call in re.findall(r'redis\.p?call\("(\w+)"(?:, "(\w+)")?', text)}
    names = {"|".join(call if call[0] in ("XGROUP", "XINFO") else call[:1]).lower() for call in calls}
    assert len(names) > 25
    assert names - probed(keys) == set()


def test_what_is_asked_for_is_what_is_needed(
    processes: Processes, client: Redis, settings: BridgeSettings, admin: Redis, keys: Keys, server: RedisServer
) -> None:
    """A worker, publishers, a retry of dead letters, a replay and those who look are refused nothing."""
    admin.execute_command("ACL", "SETUSER", "bus", f"(+rpush ~{settings.channel_prefix}effects)")  # of the handlers
    environment = FAST | {"BRIDGE_REDIS_URL": settings.url, "CELERY_BROKER_URL": server.url}
    kinds = ["trip.booked", "retry.created", "repeatable.created", "deadly.created", "chosen.a", "booked.created"]
    kinds += ["rejected.created", "expiring.created", "limited.created"]
    admin.xgroup_create(keys.journal, "tests", id="0", mkstream=True)
    with EventBus(settings) as bus:
        bus.publish_many([Event(type=kind, id=kind, payload={"yes": False}) for kind in kinds])
    admin.xreadgroup("tests", "dead", {keys.journal: ">"}, count=3)
    worker = processes.celery("worker", "-n", "w1@test", "-c", "2", "-Q", "celery", app=APP, name="w1", **environment)
    letters, ledger = DeadLetters(client, settings), Ledger(client, settings)
    ended = {"hotel", "retrying", "deadly", "rejected", "limited", "expiring"}
    eventually(lambda: {one.handler.rpartition(".")[2] for one in letters.latest(20)} == ended, "dead letters", 40)
    foreign = Event(type="dream.created", id="foreign")
    admin.set(keys.event("foreign"), foreign.encode(), ex=600)
    admin.publish(keys.channel("dream.created"), foreign.encode())
    eventually(lambda: b"plain foreign" in admin.lrange(f"{settings.channel_prefix}effects", 0, -1), "it is heard")
    eventually(lambda: ledger.size() == 0, "all have ended")

    admin.set(f"{settings.channel_prefix}room", 1)
    commands = ["dead retry --handler tests.watching.app.hotel", "replay --id foreign --handler tests.app.plain"]
    commands += ["trace trip.booked", "check --ready"]
    running = [processes.celery("bus", *text.split(), app=APP, name="bus", **environment) for text in commands]
    assert [process.wait(20) for process in running] == [0, 0, 0, 0]
    eventually(lambda: ledger.size() == 0, "retry and replay have ended")
    letters.drop([letters.latest(1)[0].letter_id])
    assert History(client, settings).newest(5)
    assert Groups(client, settings).in_use("tests")
    assert [group.alive for group in read_status(client, settings).groups] == [1]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert {text for text in refusals(admin) if text.split()[1] not in OPTIONAL} == set()


def test_a_bus_that_is_the_broker_as_well(
    use, start: Start, settings: BridgeSettings, admin: Redis, prefix: str
) -> None:
    """Handing over in transactions needs nothing more but to push to the queues."""
    use("t.exact")
    of_kombu = ["+llen", "+lpush", "+sadd", "+smembers", "+ping", "+info"]
    admin.execute_command("ACL", "SETUSER", "bus", f"(~broker:{prefix}* {' '.join(of_kombu)})")
    with make_app(settings.url, prefix) as app, EventBus(settings) as bus:
        subscriber = start(app=app, redis_url=settings.url)
        assert subscriber._dispatcher
        bus.publish_many([Event(type="dream.created", id=f"n{number}") for number in range(50)])
        queues = Queues(admin, prefix)
        eventually(lambda: queues.length() == 50, "all are handed over")
        subscriber.stop()
    assert "cmdstat_exec" in admin.info("commandstats")
    assert {text for text in refusals(admin) if text.split()[1] not in OPTIONAL} == set()

"""Verifying the permissions of a role: each missing one is named, and nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.operations.acl import verify as rights
from bridge.operations.acl.bus import ROLES, Role, bus_grants
from bridge.operations.acl.rules import Grant, rules_of, version_of
from bridge.operations.acl.scripts import SCRIPTS
from bridge.redis.client import connect
from bridge.storage.keys import Keys
from bridge.storage.lua import provide_scripts, script_text
from bridge.testing.redis_server import RedisServer
from tests.support import ROOT


@pytest.fixture
def admin(each_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(each_server.url) as client:
        provide_scripts(client)  # as a subscriber does
        yield client


@pytest.fixture
def settings(each_server: RedisServer, prefix: str, admin: Redis) -> Iterator[BridgeSettings]:
    """The settings of a user of this test, with all features that need permissions."""
    user = prefix.replace(":", "-")
    url = each_server.url.replace("//", f"//{user}:secret@")
    everything = {"wait_replicas": 1, "max_events_per_s_per_source": 5.0}
    yield BridgeSettings.load(redis_url=url, channel_prefix=prefix, group="tests", **everything)
    admin.acl_deluser(user)


@pytest.fixture
def client(settings: BridgeSettings) -> Iterator[Redis]:
    with connect(settings) as connected:
        yield connected


def grant(admin: Redis, client: Redis, grants: list[Grant]) -> None:
    """Give the user of *client* exactly these permissions."""
    words = [word for rule in rules_of(grants, version_of(admin)) for word in rule.split(" ")]
    admin.execute_command("ACL", "SETUSER", rights.user_of(client), ">secret", *words)


def dump(client: Redis, prefix: str) -> dict[bytes, Any]:
    """Return all keys of a bus in Redis, with their values and expiry times."""
    return {key: (client.dump(key), client.expiretime(key)) for key in client.scan_iter(f"*{prefix}*")}


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_refused_and_nothing_changed(
    client: Redis, settings: BridgeSettings, admin: Redis, each_server: RedisServer, role: Role
) -> None:
    """Verifying an empty bus or one in use changes no key, sends no message and leaves no entry in ACL LOG."""
    prefix = settings.channel_prefix
    admin.acl_log_reset()
    grant(admin, client, bus_grants(role, settings))
    assert rights.missing_permissions(client, settings, role) == []
    assert dump(admin, prefix) == {}
    keys = Keys(prefix)
    with EventBus(redis_url=each_server.url, channel_prefix=prefix) as bus:
        bus.publish_many([Event(type="a.b", id=f"n{number}") for number in range(20)])
    admin.xgroup_create(keys.journal, "tests", id="0")
    admin.xreadgroup("tests", "somebody", {keys.journal: ">"}, count=5)
    before, groups = dump(admin, prefix), admin.xinfo_stream(keys.journal, full=True)["groups"]
    with admin.pubsub() as pubsub:
        pubsub.psubscribe(f"*{prefix}*")
        assert pubsub.get_message(timeout=5)
        assert rights.missing_permissions(client, settings, role) == []
        assert pubsub.get_message(timeout=0.1) is None
    assert dump(admin, prefix) == before
    assert admin.xinfo_stream(keys.journal, full=True)["groups"] == groups
    assert [one for one in admin.acl_log() if one["username"] == rights.user_of(client)] == []


@pytest.mark.parametrize("role", ROLES)
def test_each_right_that_is_missing_is_named(client: Redis, settings: BridgeSettings, admin: Redis, role: Role) -> None:
    """Each missing command, key pattern and channel pattern is reported individually."""
    grants = bus_grants(role, settings)
    for place, one in enumerate(grants):
        for command in sorted(one.commands):
            rest = one.commands - {command}
            less = Grant(rest, one.keys, one.channels) if rest else Grant(rest)
            grant(admin, client, [*grants[:place], less, *grants[place + 1 :]])
            if command == "client|setname":
                continue  # no client can connect without it
            found = rights.missing_permissions(client, settings, role)
            spelled = command.replace("|", " ").upper()
            if command == "evalsha":  # permissions cannot be verified without it
                assert len(found) == 1
                assert "'evalsha'" in found[0]
            else:
                names = [name.sample for name in (*one.keys, *one.channels)] or [""]
                assert found == [f"{spelled} {name}".strip() for name in names]
        for name in (*one.keys, *one.channels):
            keys = tuple(other for other in one.keys if other != name)
            channels = tuple(other for other in one.channels if other != name)
            less = Grant(one.commands if keys or channels else frozenset(), keys, channels)
            grant(admin, client, [*grants[:place], less, *grants[place + 1 :]])
            found = rights.missing_permissions(client, settings, role)
            assert found, name
            assert "evalsha" in one.commands or all(text.endswith(name.sample) for text in found), (found, name)


def test_a_user_is_named(client: Redis, admin: Redis, prefix: str) -> None:
    """The user is the one of the address, or "default" without one."""
    assert rights.user_of(client) == prefix.replace(":", "-")
    assert rights.user_of(admin) == "default"


def test_a_server_that_does_not_tell(client: Redis, settings: BridgeSettings, admin: Redis, monkeypatch) -> None:
    """Before 7.0 scripts cannot verify permissions, so none is reported as missing."""
    grant(admin, client, bus_grants("worker", settings))
    monkeypatch.setattr("bridge.storage.lua.script_text", lambda _: "return false")
    assert rights.missing_permissions(client, settings, "operator") == []


def test_scripts_do_what_the_list_says() -> None:
    """The list of commands of each script contains exactly the commands in its code."""
    paths = sorted((ROOT / "bridge" / "storage" / "lua").glob("*.lua"))
    assert {path.stem for path in paths} > {"publish", "append"}
    for path in paths:
        calls = re.findall(r'redis\.p?call\("(\w+)"(?:, "(\w+)")?', script_text(path.stem))
        done = {"|".join(call if call[0] in ("XGROUP", "XINFO") else call[:1]).lower() for call in calls}
        kinds = [of for name, of in SCRIPTS.items() if name.split(",")[0] == path.stem]
        listed = {command for of in kinds for commands in of.values() for command in commands.split()}
        assert done - {"time", "publish"} == listed, path.stem

"""Retention: the journal is kept for as long as the group needs that keeps events longest."""

from __future__ import annotations

import pytest
from redis import Redis

from bridge import BridgeSettings
from bridge.operations.groups import Groups
from bridge.redis.client import connect
from bridge.storage.group_settings import GroupSettings
from bridge.storage.presence import Presence
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer

HOUR_S = 3600


def group(server: RedisServer, prefix: str, name: str, event_ttl_s: int) -> Storage:
    """Return the bus as a group of this retention sees it; the group exists, and one of its subscribers has started."""
    settings = BridgeSettings.load(redis_url=server.url, channel_prefix=prefix, group=name, event_ttl_s=event_ttl_s)
    storage = Storage(connect(settings), settings)
    storage.consumer("a").create_group("earliest")
    storage.presence.report(Presence("a"), first=True)
    return storage


def age(storage: Storage, hours: int, count: int = 10, size: int = 10) -> None:
    """Append entries that are *hours* old."""
    at_ms = (storage.client.time()[0] - hours * HOUR_S) * 1000
    for number in range(count):
        storage.client.xadd(storage.keys.journal, {"event": b"x" * size}, id=f"{at_ms}-{number + 1}")


def test_a_group_that_is_down_keeps_what_it_has_yet_to_read(each_server: RedisServer, prefix: str) -> None:
    """A subscriber whose group keeps events for an hour removes none that another group keeps for longer."""
    down = group(each_server, prefix, "shop", 24 * HOUR_S)
    running = group(each_server, prefix, "newsletter", HOUR_S)
    age(down, 25)
    age(down, 2)
    trimmed = running.journal.trim()
    assert (trimmed.removed, trimmed.lost) == (10, {"shop": 10, "newsletter": 10})
    assert len(down.consumer("a").read(100, 10)) == 10


def test_the_retention_of_a_deleted_group_does_not_count(each_server: RedisServer, prefix: str) -> None:
    """When a group is deleted, its settings are deleted too, and the next retention counts."""
    gone = group(each_server, prefix, "gone", 24 * HOUR_S)
    running = group(each_server, prefix, "running", HOUR_S)
    running.group_settings.retain("gone", 48 * HOUR_S)
    age(gone, 2)
    assert running.journal.trim().removed == 0
    Groups(running).delete("gone")
    assert running.journal.trim().removed == 10
    assert running.group_settings.all().keys() == {"running"}
    assert not Groups(running).exists("gone")
    assert running.group_settings.retained() == {}


def test_a_group_of_an_older_version_is_kept_for_as_long_as_the_own(each_server: RedisServer, prefix: str) -> None:
    """For a group that has written no settings, the retention of the subscriber that trims counts."""
    running = group(each_server, prefix, "running", HOUR_S)
    older = running.of_group("older")
    older.consumer("a").create_group("earliest")
    older.client.hset(older.keys.group_settings, "strange", "not written by a bridge")
    age(older, 2)
    assert running.journal.trim().lost == {"older": 10, "running": 10}
    assert running.group_settings.all().keys() == {"running"}


def test_the_retention_of_a_group_can_be_raised_while_it_is_down(each_server: RedisServer, prefix: str) -> None:
    """What an operator writes counts for its time, also when subscribers of the group start, and then ends."""
    down = group(each_server, prefix, "shop", HOUR_S)
    running = group(each_server, prefix, "newsletter", HOUR_S)
    age(down, 2)
    running.group_settings.retain("shop", 3 * HOUR_S)
    assert running.journal.trim().removed == 0
    down.presence.report(Presence("b"), first=True)
    assert down.group_settings.all()["shop"] == GroupSettings.of(down.settings)
    assert down.group_settings.retained() == {"shop": 3 * HOUR_S}
    assert running.journal.trim().removed == 0
    key = down.keys.group_settings
    past_ms = (down.client.time()[0] - 1) * 1000
    down.client.hset(key, "retained:shop", f"{3 * HOUR_S * 1000} {4 * HOUR_S * 1000} {past_ms}")
    assert down.group_settings.retained() == {}
    assert running.journal.trim().removed == 10
    assert not down.client.hexists(key, "retained:shop")  # the marks of events need not outlive it


def test_settings_of_a_group_are_written_again_after_a_loss(client: Redis, settings: BridgeSettings) -> None:
    """Settings that were deleted return with the next report of a subscriber, without any secret."""
    key = "0123456789abcdef0123456789abcdef"
    signing = settings.model_copy(update={"signing_keys": {"2026": key.encode()}})
    storage = Storage(client, signing)
    storage.presence.report(Presence("a"))
    assert storage.group_settings.all() == {"tests": GroupSettings.of(signing)}
    assert storage.group_settings.all()["tests"].values["signing_keys"] == ["2026"]
    assert key not in str(client.hgetall(storage.keys.group_settings))


@pytest.mark.parametrize("read", [True, False])
def test_one_step_of_trimming_is_bounded_by_bytes(own_server: RedisServer, prefix: str, read: bool) -> None:
    """Large entries that a group has not read are inspected a few at a time; those that all have read are not."""
    storage = group(own_server, prefix, "g", HOUR_S)
    age(storage, 2, count=60, size=1024 * 1024)
    client = storage.client
    if read:
        client.xgroup_setid(storage.keys.journal, "g", "$")
    before = client.info("memory")["used_memory_peak"]
    steps, lost, more = 0, 0, True
    while more:
        trimmed = storage.journal.trim()
        steps, lost, more = steps + 1, lost + trimmed.lost.get("g", 0), trimmed.more
    assert (steps, lost) == ((1, 0) if read else (15, 60))
    assert client.xlen(storage.keys.journal) == 0
    assert client.info("memory")["used_memory_peak"] - before < 16 * 1024 * 1024

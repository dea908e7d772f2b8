"""Trimming notices that another program has removed entries, such as a publisher with ``XADD MAXLEN 0``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge import BridgeSettings
from bridge.redis.client import connect
from bridge.storage.entries import stream_position
from bridge.storage.journal_consumer import JournalConsumer
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.journals import consumer, publish
from tests.support.outside import now_ms

HOUR_MS = 3_600_000


@pytest.fixture
def storage(each_server: RedisServer, prefix: str) -> Iterator[Storage]:
    settings = BridgeSettings.load(redis_url=each_server.url, channel_prefix=prefix, group="g", event_ttl_s=3600)
    with connect(settings) as client:
        yield Storage(client, settings)


def acknowledge(storage: Storage, one: JournalConsumer, *entry_ids: bytes) -> None:
    storage.client.xack(storage.keys.journal, one.group, *entry_ids)


def entry_ids(storage: Storage) -> list[bytes]:
    return [entry_id for entry_id, _ in storage.client.xrange(storage.keys.journal)]


def next_id(entry_id: bytes) -> str:
    ms, sequence = map(int, entry_id.split(b"-"))
    return f"{ms}-{sequence + 1}"


def cut(storage: Storage) -> None:
    storage.client.xadd(storage.keys.journal, {"id": "x", "type": "x", "event": "x"}, maxlen=0, approximate=False)


@pytest.mark.parametrize("undone", ["unread", "pending", "nothing"])
def test_what_a_group_had_not_acknowledged_is_told(storage: Storage, undone: str) -> None:
    """The first entry that any of the groups had not acknowledged at the trim before is reported, and only once."""
    fast, slow = consumer(storage, "fast"), consumer(storage, "slow")
    publish(storage, *[f"n{number}" for number in range(6)])
    ids = entry_ids(storage)
    fast.read(6, 1)
    acknowledge(storage, fast, *ids)
    slow.read({"unread": 2, "pending": 4, "nothing": 6}[undone], 1)
    acknowledge(storage, slow, *(ids[:6] if undone == "nothing" else ids[:2]))
    assert storage.journal.trim().cut == ""
    cut(storage)
    after = {"unread": next_id(ids[1]), "pending": ids[2].decode(), "nothing": next_id(ids[-1])}
    assert storage.journal.trim().cut == after[undone]
    assert storage.journal.trim().cut == ""


def test_entries_that_came_and_went_since_the_journal_was_empty(storage: Storage) -> None:
    """Redis 7 counts them. So an attack that is repeated all the time is noticed at every trim."""
    one = consumer(storage, "g")
    counts = "entries-added" in storage.client.xinfo_stream(storage.keys.journal)
    assert storage.journal.trim().cut == ""
    for attack in range(3):
        publish(storage, f"n{attack}")
        ids = entry_ids(storage)
        cut(storage)
        publish(storage, *[f"late{attack}"] * (attack == 2))
        told = storage.journal.trim().cut
        assert (told != "" and stream_position(told) <= stream_position(ids[0].decode())) is counts
        assert storage.journal.trim().cut == ""
    assert [entry.entry_id for entry in one.read(9, 1)] == entry_ids(storage)
    assert storage.journal.trim().cut == ""


def test_what_the_bridge_removes_is_not_told(storage: Storage) -> None:
    """Trimming, also in several steps, a repair, a new journal and a change of the retention are no cut."""
    one = consumer(storage, "g")
    for number in range(250):
        storage.client.xadd(storage.keys.journal, {"event": "x"}, id=f"{now_ms() - 2 * HOUR_MS}-{number + 1}")
    publish(storage, "n0")
    while (trimmed := storage.journal.trim(100)).more:
        assert trimmed.cut == ""
    assert storage.client.xlen(storage.keys.journal) == 1
    storage.group_settings.retain("g", 10 * 3600)
    assert storage.journal.trim().cut == ""
    storage.client.xadd(storage.keys.journal, {"event": "x"}, id=f"{now_ms() + HOUR_MS}-0")
    assert storage.journal_repair.set_aside()
    assert storage.journal.trim().cut == ""
    while storage.journal_repair.move_back()[1]:
        assert storage.journal.trim().cut == ""
    assert [entry.entry_id for entry in one.read(9, 1)] == entry_ids(storage)
    storage.client.delete(storage.keys.journal)
    assert storage.journal.trim().cut == ""
    publish(storage, "n1")
    consumer(storage, "g")
    assert storage.journal.trim().cut == ""
    cut(storage)
    assert storage.journal.trim().cut


def test_old_entries_may_have_been_removed_by_a_subscriber_of_an_older_version(storage: Storage) -> None:
    """It does not record what it removes, which is only what all groups have kept for long enough."""
    consumer(storage, "g")
    storage.client.xadd(storage.keys.journal, {"event": "x"}, id=f"{now_ms() - HOUR_MS + 300}-1")
    publish(storage, "n0")
    assert storage.journal.trim().removed == 0
    storage.client.set(storage.keys.journal_start, f"{now_ms() - HOUR_MS - 1}-1 0-1 0")
    storage.client.xtrim(storage.keys.journal, maxlen=1, approximate=False)
    assert storage.journal.trim().cut == ""


def test_only_marks_of_entries_that_may_be_missing_are_looked_at(storage: Storage) -> None:
    """Events without a mark, and those whose entry has the id or a later one; not refused ones, nor odd marks."""
    publish(storage, "n0", "n1", "n2")
    since = entry_ids(storage)[1].decode()
    for name, mark in (("limited", "d:f:limited"), ("odd", b"\xff"), ("huge", "d:f:" + "9" * 30 + "-0")):
        storage.client.set(storage.keys.seen(name), mark)
    ids = ["n0", "n1", "n2", "new", "limited", "odd", "huge"]
    assert storage.journal.missing(ids, since) == ["n1", "n2", "new"]
    assert storage.journal.missing([], since) == []

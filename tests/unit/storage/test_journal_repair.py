"""A journal whose ids are ahead of the clock is repaired: nothing is lost, nothing is delivered twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from bridge import BridgeSettings, Event
from bridge.events.encoded import EncodedEvent
from bridge.redis.client import connect
from bridge.storage.journal_consumer import JournalConsumer
from bridge.storage.lua import script_text
from bridge.storage.status import read_status
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.journals import consumer, publish
from tests.support.outside import now_ms

DAY_MS = 86_400_000
LAST_ID = "18446744073709551615-18446744073709551615"


@pytest.fixture
def storage(each_server: RedisServer, prefix: str) -> Iterator[Storage]:
    settings = BridgeSettings.load(redis_url=each_server.url, channel_prefix=prefix, group="g")
    with connect(settings) as client:
        yield Storage(client, settings)


def write(storage: Storage, entry_id: str, **fields: Any) -> None:
    storage.client.xadd(storage.keys.journal, fields or {"id": "other", "type": "a.b", "event": "x"}, id=entry_id)


def move_all_back(storage: Storage) -> int:
    moved = 0
    while True:
        count, more = storage.journal_repair.move_back()
        moved += count
        if not more:
            return moved


def ids(storage: Storage) -> list[str]:
    return [fields[b"id"].decode() for _, fields in storage.client.xrange(storage.keys.journal)]


def unread(one: JournalConsumer) -> list[str]:
    """Return the ids of the events that are new to the group, and acknowledge them."""
    found = []
    while entries := one.read(100, 1):
        found += [
            Event.decode(entry.data or b"", max_bytes=1000).id
            for entry in entries
            if one.group not in (entry.done or ())
        ]
        one._client.xack(one._key, one.group, *[entry.entry_id for entry in entries])
    return found


@pytest.mark.parametrize(
    "entry_id",
    [LAST_ID, f"{now_ms() + 3 * DAY_MS}-0", f"{now_ms() + 3 * DAY_MS}-{2**64 - 1}"],
    ids=["last", "ahead", "ahead and last of its millisecond"],  # the same in all processes of pytest-xdist
)
def test_each_group_gets_what_it_has_not_acknowledged(storage: Storage, entry_id: str) -> None:
    """Read, pending and unread entries of each group, before and after the wrong id, are delivered once."""
    publish(storage, "n0", "n1", "n2")
    first, second = consumer(storage, "first"), consumer(storage, "second")
    assert unread(first) == ["n0", "n1", "n2"]
    assert len(second.read(2, 1)) == 2  # and not acknowledged
    write(storage, entry_id, id="wrong", type="a.b", event=Event(id="wrong", type="a.b").encode())
    if entry_id != LAST_ID:
        publish(storage, "n3", "n4")
        assert len(first.read(2, 1)) == 2
    assert storage.journal_repair.set_aside() > 2 * DAY_MS
    publish(storage, "new")
    expected = 4 if entry_id == LAST_ID else 6
    assert move_all_back(storage) == expected
    later = [] if entry_id == LAST_ID else ["n3", "n4"]
    assert unread(first) == ["new", "wrong", *later]
    assert unread(second) == ["new", "n0", "n1", "n2", "wrong", *later]
    assert ids(storage) == ["new", "n0", "n1", "n2", "wrong", *later]
    times = [int(row[0].split(b"-")[0]) for row in storage.client.xrange(storage.keys.journal)]
    assert all(abs(now_ms() - time) < 60_000 for time in times)
    assert storage.client.keys("*" + storage.keys.prefix + "*aside*") == []
    assert storage.journal_repair.set_aside() == 0


def test_the_new_journal_accepts_no_id_of_the_past(storage: Storage) -> None:
    """Otherwise an old signed event could be written with the time at which it was new."""
    write(storage, LAST_ID)
    consumer(storage, "g")
    assert storage.journal_repair.set_aside()
    with pytest.raises(ResponseError, match="equal or smaller"):
        write(storage, f"{now_ms() - 10_000}-0")
    publish(storage, "n0")
    assert move_all_back(storage) == 1
    status = read_status(storage).group("g")
    assert status is not None
    assert (status.backlog, status.exact) == (2, True)


def test_marks_point_to_the_new_entries(storage: Storage) -> None:
    """A refill does not append the events again, because their marks have the ids of the new entries."""
    consumer(storage, "g")
    write(storage, f"{now_ms() + DAY_MS}-0")
    publish(storage, "n0")
    ttl_ms = storage.client.pttl(storage.keys.seen("n0"))
    storage.journal_repair.set_aside()
    move_all_back(storage)
    event = Event(id="n0", type="a.b")
    again = [EncodedEvent.of(event, event.encode())]
    assert storage.journal.append(again, refill=True) == ["repeated"]
    assert ids(storage) == ["other", "n0"]
    assert ttl_ms - 60_000 < storage.client.pttl(storage.keys.seen("n0")) <= ttl_ms


def test_it_survives_a_second_attack_and_a_crash(storage: Storage) -> None:
    """The journal is set aside again while entries of the first are moved; a group that was done stays done."""
    publish(storage, *[f"n{number}" for number in range(700)])
    one = consumer(storage, "g")
    assert len(unread(one)) == 700
    write(storage, LAST_ID, id="first", type="a.b", event=Event(id="first", type="a.b").encode())
    assert storage.journal_repair.set_aside()
    assert storage.journal_repair.move_back() == (500, True)
    write(storage, LAST_ID, id="second", type="a.b", event=Event(id="second", type="a.b").encode())
    with pytest.raises(Exception, match="exhausted the last possible ID"):
        storage.journal_repair.move_back()
    again = Storage(storage.client, storage.settings)  # in another process
    assert again.journal_repair.set_aside()
    assert move_all_back(again) == 201 + 501
    assert sorted(ids(storage)) == sorted(["first", "second", *(f"n{number}" for number in range(700))])
    assert unread(one) == ["first", "second"]


def test_what_other_programs_wrote_stops_nothing(storage: Storage) -> None:
    """Entries with thousands of fields, without an event, or with bytes that are no text are moved as well."""
    consumer(storage, "g")
    many: dict[Any, Any] = {f"field{number}": "x" for number in range(9000)}
    write(storage, f"{now_ms() + DAY_MS}-0", **many)
    storage.client.xadd(storage.keys.journal, {b"\xff": b"\xff", "id": b"\xff", "group": b"\xff", "done": b"g \xff"})
    storage.client.set(storage.keys.seen("odd"), "x")
    storage.client.hset(storage.keys.seen("hash"), "f", "v")
    storage.client.xadd(storage.keys.journal, {"id": "hash", "event": b"x" * 5_000_000})
    assert storage.journal_repair.set_aside()
    assert move_all_back(storage) == 3
    rows = storage.client.xrange(storage.keys.journal)
    assert [fields.get(b"id") for _, fields in rows] == [None, b"\xff", b"hash"]


def test_a_clock_that_is_slightly_ahead_changes_nothing(storage: Storage) -> None:
    """Ids up to a minute ahead fit again soon; and without a journal there is nothing to repair."""
    assert storage.journal_repair.set_aside() == 0
    write(storage, f"{now_ms() + 30_000}-0")
    assert storage.journal_repair.set_aside() == 0
    assert storage.client.xlen(storage.keys.journal) == 1


def test_a_full_server_is_repaired_as_well(own_server: RedisServer, prefix: str) -> None:
    """The repair needs no memory, so trimming, which frees memory, does not have to wait for it."""
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="g")
    with connect(settings) as client:
        storage = Storage(client, settings)
        publish(storage, "n0", "n1")
        one = consumer(storage, "g")
        write(storage, LAST_ID)
        assert storage.journal_repair.move_back() == (0, False)
        client.script_load(script_text("move_back"))
        client.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            client.set("x", 1)
        assert storage.journal_repair.set_aside()
        assert move_all_back(storage) == 3
        assert len(one.read(10, 1)) == 3

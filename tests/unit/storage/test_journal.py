"""The journal on real servers: unique entries, groups, pending entries, claims, trimming."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from bridge import BridgeSettings, Event, JournalLost
from bridge.events.encoded import EncodedEvent
from bridge.redis.client import connect
from bridge.storage.journal import Journal, new_attempt
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer


@pytest.fixture
def redis(each_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(each_server.url, protocol=2) as client:
        yield client


@pytest.fixture
def storage(each_server: RedisServer, prefix: str) -> Storage:
    return storage_of(each_server, prefix)


@pytest.fixture
def journal(storage: Storage) -> Journal:
    return storage.journal


def storage_of(server: RedisServer, prefix: str, group: str = "g", **settings: object) -> Storage:
    loaded = BridgeSettings.load(redis_url=server.url, channel_prefix=prefix, group=group, **settings)
    return Storage(connect(loaded), loaded)


def record(event_id: str, payload: object = None) -> EncodedEvent:
    event = Event(type="a.b", id=event_id, payload=payload)
    return EncodedEvent.of(event, event.encode())


def acknowledge(storage: Storage, entry_ids: list[bytes]) -> None:
    storage.client.execute_command(*storage.consumer("a").acknowledge_command(entry_ids))


def ids(entries: list) -> list[str]:
    return [Event.decode(entry.data, max_bytes=10_000).id for entry in entries]


def test_each_id_is_appended_once(journal: Journal, redis: Redis, prefix: str) -> None:
    """Repetitions are detected within and across calls; another payload under a known id is a conflict."""
    assert journal.append([record("1"), record("2"), record("1")]) == ["appended", "appended", "repeated"]
    assert journal.append([record("2"), record("2", "other"), record("3")]) == ["repeated", "conflict", "appended"]
    assert redis.xlen(Keys(prefix).journal) == 3


def test_a_refilled_journal_tells_entries_apart_that_have_the_same_id(
    journal: Journal, redis: Redis, prefix: str
) -> None:
    """An event is restored even if the new journal uses its old entry id for another event."""
    key = Keys(prefix).journal
    journal.append([record("before")])
    [(entry_id, _)] = redis.xrange(key)
    redis.delete(key)
    redis.xadd(key, {"id": "after", "type": "a.b", "event": record("after").data}, id=entry_id)
    assert journal.append([record("before")], refill=True) == ["appended"]
    assert journal.append([record("before")], refill=True) == ["repeated"]


def test_concurrent_appends_in_random_order_append_once(each_server: RedisServer, redis: Redis, prefix: str) -> None:
    """Three copies each of ten thousand events, in random order from three writers, become ten thousand entries."""
    records = [record(str(number)) for number in range(10_000)] * 3
    random.Random(7).shuffle(records)
    outcomes: list[str] = []

    def write(part: list[EncodedEvent]) -> None:
        journal = storage_of(each_server, prefix).journal
        for start in range(0, len(part), 500):
            outcomes.extend(journal.append(part[start : start + 500]))

    threads = [threading.Thread(target=write, args=(records[number::3],)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count("appended"), outcomes.count("repeated")) == (10_000, 20_000)
    assert redis.xlen(Keys(prefix).journal) == 10_000


def test_a_repeated_publication_is_recognised_as_itself(journal: Journal, redis: Redis, prefix: str) -> None:
    """An attempt that is repeated after a lost reply counts as published once; another attempt is a repetition."""
    token, first = new_attempt(), record("1")
    assert journal.publish([first], [token], broadcast=True) == ["appended"]
    assert journal.publish([first], [token], broadcast=True) == ["appended"]
    assert journal.publish([record("1")], [new_attempt()], broadcast=True) == ["repeated"]
    assert journal.publish([record("1", "other")], [new_attempt()], broadcast=True) == ["conflict"]
    assert redis.xlen(Keys(prefix).journal) == 1


def test_scripts_survive_a_flush(journal: Journal, redis: Redis) -> None:
    """After SCRIPT FLUSH single and pipelined calls still work."""
    for count in (1, 3):
        redis.script_flush()
        records = [record(f"{count}-{number}") for number in range(count)]
        assert journal.publish(records, [new_attempt() for _ in records], broadcast=True) == ["appended"] * count


def test_a_journal_key_of_another_type_is_loud_and_marks_nothing(journal: Journal, redis: Redis, prefix: str) -> None:
    """If the journal cannot be written, the event is not marked as seen, so it is not lost after the repair."""
    redis.set(Keys(prefix).journal, "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        journal.append([record("1")])
    redis.delete(Keys(prefix).journal)
    assert journal.append([record("1")]) == ["appended"]


def test_every_group_gets_every_event_once(each_server: RedisServer, prefix: str) -> None:
    """Consumers of one group share the events; another group gets all of them."""
    first, second = storage_of(each_server, prefix, "one"), storage_of(each_server, prefix, "two")
    first.journal.append([record(str(number)) for number in range(10)])
    for storage in (first, second):
        assert storage.consumer("a").create_group("earliest")
        assert not storage.consumer("a").create_group("earliest")
    shared = first.consumer("a").read(4, 10) + first.consumer("b").read(100, 10)
    assert ids(shared) == ids(second.consumer("a").read(100, 10)) == [str(number) for number in range(10)]
    assert first.consumer("a").read(10, 10) == []


def test_a_late_group_begins_with_the_next_event(storage: Storage) -> None:
    """A group created at "latest" does not get the existing entries."""
    storage.journal.append([record("before")])
    assert "g" not in storage.journal.groups()
    storage.consumer("a").create_group("latest")
    assert "g" in storage.journal.groups()
    storage.journal.append([record("after")])
    assert ids(storage.consumer("a").read(10, 10)) == ["after"]


def test_held_entries_come_back_until_acknowledged(storage: Storage, redis: Redis) -> None:
    """Entries that a consumer has read but not acknowledged stay pending for it, and it can read them again."""
    storage.consumer("a").create_group("earliest")
    storage.journal.append([record(str(number)) for number in range(3)])
    entries = storage.consumer("a").read(10, 10)
    assert ids(storage.consumer("a").pending_entries(10)) == ["0", "1", "2"]
    assert storage.consumer("b").pending_entries(10) == []
    acknowledge(storage, [entry.entry_id for entry in entries[:2]])
    acknowledge(storage, [entry.entry_id for entry in entries[:2]])
    assert ids(storage.consumer("a").pending_entries(10)) == ["2"]


def test_claim_takes_over_from_a_dead_consumer(storage: Storage) -> None:
    """Entries that have been idle long enough are claimed, page by page; fresh entries stay with their consumer."""
    storage.consumer("a").create_group("earliest")
    storage.journal.append([record(str(number)) for number in range(25)])
    storage.consumer("dead").read(100, 10)
    assert storage.consumer("b").claim(60_000, b"0-0", 100).taken == 0
    taken, cursor, calls = 0, b"0-0", 0
    while calls == 0 or cursor != b"0-0":
        claimed = storage.consumer("b").claim(0, cursor, 10)
        taken, calls, cursor = taken + claimed.taken, calls + 1, claimed.cursor
    assert (taken, calls) == (25, 3)
    assert len(storage.consumer("b").pending_entries(100)) == 25


def test_claim_counts_what_was_removed_meanwhile(storage: Storage, redis: Redis, prefix: str) -> None:
    """Entries that were deleted while a dead consumer held them are counted as lost."""
    storage.consumer("a").create_group("earliest")
    storage.journal.append([record(str(number)) for number in range(3)])
    entries = storage.consumer("dead").read(100, 10)
    redis.xdel(Keys(prefix).journal, entries[0].entry_id)
    claimed = storage.consumer("b").claim(0, b"0-0", 100)
    assert (claimed.taken, claimed.removed) == (2, 1)


def test_removed_entries_are_reported_not_skipped(storage: Storage, redis: Redis, prefix: str) -> None:
    """A pending entry that was deleted is returned without data."""
    storage.consumer("a").create_group("earliest")
    storage.journal.append([record("1")])
    (entry,) = storage.consumer("a").read(10, 10)
    redis.xdel(Keys(prefix).journal, entry.entry_id)
    held = storage.consumer("a").pending_entries(10)
    assert [(one.entry_id, one.data) for one in held] == [(entry.entry_id, None)]


def test_a_lost_journal_or_group_has_its_own_error(storage: Storage, redis: Redis, prefix: str) -> None:
    """Reading, claiming and leaving raise JournalLost if the stream or the group does not exist."""
    storage.consumer("a").create_group("earliest")
    redis.delete(Keys(prefix).journal)
    for call in (
        lambda: storage.consumer("a").read(1, 10),
        lambda: storage.consumer("a").pending_entries(1),
        lambda: storage.consumer("a").claim(0, b"0-0", 1),
        lambda: storage.consumer("a").leave(),
    ):
        with pytest.raises(JournalLost):
            call()


def test_leaving_keeps_a_consumer_that_holds_entries(storage: Storage, redis: Redis, prefix: str) -> None:
    """A consumer is removed only if it has no pending entries."""
    storage.consumer("a").create_group("earliest")
    storage.journal.append([record("1")])
    (entry,) = storage.consumer("a").read(10, 10)
    storage.consumer("a").leave()
    assert [consumer["name"] for consumer in redis.xinfo_consumers(Keys(prefix).journal, "g")] == [b"a"]
    acknowledge(storage, [entry.entry_id])
    storage.consumer("a").leave()
    assert redis.xinfo_consumers(Keys(prefix).journal, "g") == []


def test_trim_goes_by_age_and_counts_what_a_group_loses(each_server: RedisServer, redis: Redis, prefix: str) -> None:
    """Only entries past their lifetime are removed; pending and unread ones are counted for their group."""
    storage = storage_of(each_server, prefix, event_ttl_s=3600)
    idle = storage_of(each_server, prefix, "idle", event_ttl_s=3600)
    key = Keys(prefix).journal
    storage.consumer("a").create_group("earliest")
    idle.consumer("a").create_group("earliest")
    seconds, _ = redis.time()
    for number in range(2500):
        redis.xadd(key, {"event": b"{}"}, id=f"{(seconds - 7200) * 1000}-{number + 1}")
    storage.journal.append([record("young")])
    done = storage.consumer("a").read(2490, 10)
    acknowledge(storage, [entry.entry_id for entry in done[:-5]])
    lost, rounds, more = {"g": 0, "idle": 0}, 0, True
    while more:
        trimmed = storage.journal.trim()
        more, rounds = trimmed.more, rounds + 1
        for group, count in trimmed.lost.items():
            lost[group] += count
    assert rounds == 3
    assert lost == {"g": 15, "idle": 2500}
    assert [fields[b"id"] for _, fields in redis.xrange(key)] == [b"young"]
    assert storage.consumer("a").pending_entries(10) == []
    assert ids(storage.consumer("a").read(10, 10)) == ["young"]


def test_trim_counts_no_replay_for_another_group(each_server: RedisServer, redis: Redis, prefix: str) -> None:
    """An entry that a replay addressed to one group does not count as lost for another group."""
    storage = storage_of(each_server, prefix, event_ttl_s=3600)
    other = storage_of(each_server, prefix, "other", event_ttl_s=3600)
    storage.consumer("a").create_group("earliest")
    other.consumer("a").create_group("earliest")
    seconds, _ = redis.time()
    redis.xadd(Keys(prefix).journal, {"event": b"{}", "group": "other"}, id=f"{(seconds - 7200) * 1000}-1")
    assert storage.journal.trim().lost == {"other": 1}


def test_trim_of_a_young_or_missing_journal_does_nothing(journal: Journal) -> None:
    """If there is nothing to remove, trim() succeeds and removes nothing."""
    assert journal.trim().removed == 0
    journal.append([record("young")])
    assert journal.trim() == type(journal.trim())(removed=0, more=False, lost={})

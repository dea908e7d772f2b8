"""The status of the consumer groups of a bus, as in ``bus status`` and the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from bridge import BridgeSettings, Event, EventBus
from bridge.redis.client import connect
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import Delivery, Ended, InFlightTask, LedgerEntry
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ledger
from bridge.storage.presence import Presence
from bridge.storage.status import BusStatus, GroupStatus, read_status
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.proxy import Proxy
from tests.support.scrape import RoundTrips
from tests.support.waiting import eventually


@pytest.fixture
def each_settings(each_server: RedisServer, prefix: str) -> BridgeSettings:
    return BridgeSettings.load(redis_url=each_server.url, channel_prefix=prefix, group="tests")


@pytest.fixture
def each_client(each_settings: BridgeSettings) -> Iterator[Redis]:
    with connect(each_settings) as connected:
        yield connected


def publish(settings: BridgeSettings, count: int, **fields: Any) -> list[str]:
    """Publish events and return the ids of all journal entries."""
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="a.b", **fields) for _ in range(count)])
        return [entry.decode() for entry, _ in bus.client.xrange(Keys(settings.channel_prefix).journal)]


def group_of(client: Redis, settings: BridgeSettings, name: str = "tests") -> GroupStatus:
    found = read_status(Storage(client, settings)).group(name)
    assert found is not None
    return found


def test_without_a_journal_there_is_nothing(each_client: Redis, each_settings: BridgeSettings) -> None:
    """A missing journal without groups is not an error; the time is that of the server."""
    status = read_status(Storage(each_client, each_settings))
    seconds, _ = each_client.time()
    assert abs(status.at_ms - seconds * 1000) < 5000
    assert status == BusStatus(status.at_ms, 0, 0, 0, ())
    assert status.group("tests") is None


def test_the_backlog_of_each_group(each_client: Redis, each_settings: BridgeSettings) -> None:
    """The backlog of a group is its undelivered and pending entries, as exact as Redis can report it."""
    client, journal = each_client, Keys(each_settings.channel_prefix).journal
    entries = publish(each_settings, 150)
    starts = {"tests": "0", "late": entries[9], "nearly": entries[-51], "done": entries[-1]}
    for name, start in starts.items():
        client.xgroup_create(journal, name, id=start)
    client.xgroup_createconsumer(journal, "tests", "idle")
    for consumer, count in (("a", 5), ("b", 3)):
        client.xreadgroup("tests", consumer, {journal: ">"}, count=count)
    client.xack(journal, "tests", entries[0], entries[5])
    status = read_status(Storage(client, each_settings))
    assert [group.name for group in status.groups] == ["done", "late", "nearly", "tests"]
    assert (status.entries, status.first_ms, status.last_ms) == (150, _ms(entries[0]), _ms(entries[-1]))
    done, late, nearly, tests = status.groups
    assert (tests.backlog, tests.exact, tests.pending) == (148, True, {"a": 4, "b": 2, "idle": 0})
    assert tests.oldest_s == (status.at_ms - _ms(entries[1])) / 1000
    assert (late.backlog, late.exact) in [(140, True), (100, False)]
    assert late.oldest_s == (status.at_ms - _ms(entries[10])) / 1000
    assert (nearly.backlog, nearly.exact) == (50, True)
    assert (done.backlog, done.exact, done.oldest_s, done.pending) == (0, True, None, {})


def test_what_is_not_known_is_counted_up_to_a_limit(each_client: Redis, each_settings: BridgeSettings) -> None:
    """If Redis does not know the lag after deletions, up to a hundred entries are counted; then it is "or more"."""
    client, journal = each_client, Keys(each_settings.channel_prefix).journal
    entries = publish(each_settings, 150)
    client.xgroup_create(journal, "tests", id=entries[4])
    client.xdel(journal, entries[20], entries[30])
    (group,) = client.xinfo_groups(journal)
    assert group.get("lag") is None
    assert [(one.backlog, one.exact) for one in [group_of(client, each_settings)]] == [(100, False)]
    client.xdel(journal, *entries[105:])
    assert [(one.backlog, one.exact) for one in [group_of(client, each_settings)]] == [(98, True)]
    client.xdel(journal, *entries)
    assert [(one.backlog, one.oldest_s) for one in [group_of(client, each_settings)]] == [(0, None)]


def _ms(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def test_tasks_in_flight_and_overdue(each_client: Redis, each_settings: BridgeSettings) -> None:
    """Tasks are in flight from dispatch to end, and overdue if they should have ended, separately for each group."""
    publish(each_settings, 1)
    for name in ("tests", "other"):
        each_client.xgroup_create(Keys(each_settings.channel_prefix).journal, name, id="0")
    pair = InFlightTask("t.all", "e", "1-1", "celery")

    def ledger(**changes: Any) -> Ledger:
        return Storage(each_client, each_settings.model_copy(update=changes)).ledger

    ledger().acknowledge_sent([], [pair.entry(f"t{number}") for number in range(5)])
    ledger(redispatch_after_s=-1).acknowledge_sent([], [pair.entry("late1"), pair.entry("late2")])
    ledger(group="other").acknowledge_sent([], [LedgerEntry("delayed", pair.encode(), 60_000)])
    tests, other = (group_of(each_client, each_settings, name) for name in ("tests", "other"))
    assert (tests.in_flight, tests.overdue) == (7, 2)
    assert (other.in_flight, other.overdue) == (1, 0)
    ledger().end("late1", Ended())
    tests = group_of(each_client, each_settings)
    assert (tests.in_flight, tests.overdue) == (6, 1)


def test_dead_letters_of_each_group(each_client: Redis, each_settings: BridgeSettings) -> None:
    """A group has counts of the dead letters it holds, has ever written and has evicted; repetitions do not count."""
    publish(each_settings, 1)
    for name in ("tests", "other"):
        each_client.xgroup_create(Keys(each_settings.channel_prefix).journal, name, id="0")
    letters = Storage(each_client, each_settings.model_copy(update={"max_dead_letters": 2})).dead_letters
    for number in (1, 2, 3, 3):
        letters.add(DeadLetter.of_message("json", "", "channel", b"%d" % number))
    letters.end_task_with(DeadLetter("failure", "", "journal", b"", task_id="t"), Ended())
    found = group_of(each_client, each_settings)
    assert (found.dead_letters, found.dead_letters_written, found.dead_letters_evicted) == (2, 4, 2)
    letters.drop([letter.dead_letter_id for letter in letters.latest(10)])
    found = group_of(each_client, each_settings)
    assert (found.dead_letters, found.dead_letters_written, found.dead_letters_evicted) == (0, 4, 2)
    other = group_of(each_client, each_settings, "other")
    assert (other.dead_letters, other.dead_letters_written, other.dead_letters_evicted) == (0, 0, 0)
    huge = each_settings.model_copy(update={"max_dead_letter_bytes": 10})
    Storage(each_client, huge).dead_letters.add(DeadLetter.of_message("json", "", "channel", b"x" * 100))
    found = group_of(each_client, each_settings)
    assert (found.dead_letters, found.dead_letters_written, found.dead_letters_evicted) == (0, 5, 3)


def test_starts_are_counted_once_per_task(each_client: Redis, each_settings: BridgeSettings) -> None:
    """The delay of a first run, since its journal entry, is counted in a bucket; retries and copies are not counted."""
    ledger = Storage(each_client, each_settings).ledger
    (entry,) = publish(each_settings, 1)
    each_client.xgroup_create(Keys(each_settings.channel_prefix).journal, "tests", id="0")
    seconds, microseconds = each_client.time()
    now_ms = seconds * 1000 + microseconds // 1000
    for delay_ms in (0, 900, 1000, 60_000):
        pair = InFlightTask("t.all", f"e{delay_ms}", f"{now_ms - delay_ms}-0", "celery")
        ledger.acknowledge_sent([], [pair.entry(f"t{delay_ms}")])
        assert ledger.start_run(f"t{delay_ms}", "run", idempotent=True).result == "started"
        ledger.start_run(f"t{delay_ms}", "run", idempotent=True)  # as after a lost reply
        ledger.release(f"t{delay_ms}", "run", 0, retries=1)
        ledger.start_run(f"t{delay_ms}", "again", idempotent=True, delivery=Delivery(1))
    ledger.acknowledge_sent([], [InFlightTask("t.all", "e", entry, "celery", redispatches=1).entry("again")])
    ledger.start_run("again", "run", idempotent=True)
    starts = group_of(each_client, each_settings).starts
    assert sum(starts.counts.values()) == 4
    assert 61_900 <= starts.sum_ms < 65_000
    assert sum(count for exponent, count in starts.counts.items() if exponent <= 9) == 1  # up to 512 ms
    assert starts.counts[16] == 1  # 60 s: up to 65.536 s
    assert {exponent for exponent in starts.counts if 9 < exponent < 16} <= {10, 11}


def test_something_else_at_the_keys_of_the_figures_stops_no_task(
    each_client: Redis, each_settings: BridgeSettings
) -> None:
    """Tasks start even if the key that counts their delays has the wrong type."""
    ledger, keys = Storage(each_client, each_settings).ledger, Keys(each_settings.channel_prefix)
    each_client.set(keys.starts("tests"), "in the way")
    ledger.acknowledge_sent([], [InFlightTask("t.all", "e", "1-1", "celery").entry("t")])
    assert ledger.start_run("t", "run", idempotent=True).result == "started"


def test_subscribers_and_rate(each_client: Redis, each_settings: BridgeSettings) -> None:
    """The rate of a group is the sum over its live subscribers; dead ones are listed but not counted."""
    publish(each_settings, 1)
    each_client.xgroup_create(Keys(each_settings.channel_prefix).journal, "tests", id="0")
    presences = Storage(each_client, each_settings).presence
    presences.report(Presence("one", dispatched_per_s=1.5))
    presences.report(Presence("two", dispatched_per_s=2.0, problems=["tired"]))
    key = Keys(each_settings.channel_prefix).subscribers("tests")
    gone_ms = int(each_client.time()[0]) * 1000 - 60_000
    each_client.hset(key, "three", f'{gone_ms} {{"name": "three", "dispatched_per_s": 100.0}}')
    found = group_of(each_client, each_settings)
    assert [(one.name, one.alive, one.ready) for one in found.subscribers] == [
        ("one", True, True),
        ("three", False, False),
        ("two", True, False),
    ]
    assert (found.alive, found.dispatched_per_s) == (2, 3.5)


def test_two_round_trips_whatever_the_size(
    each_client: Redis, each_settings: BridgeSettings, round_trips: RoundTrips
) -> None:
    """Ten thousand entries and thirty groups take no more round trips than an empty bus."""
    assert round_trips(lambda: read_status(Storage(each_client, each_settings))) <= 2
    publish(each_settings, 10_000)
    for number in range(30):
        each_client.xgroup_create(Keys(each_settings.channel_prefix).journal, f"g{number}", id="0")
    assert round_trips(lambda: read_status(Storage(each_client, each_settings))) == 2
    assert [group.backlog for group in read_status(Storage(each_client, each_settings)).groups] == [10_000] * 30


def test_a_redis_that_is_away_is_an_error(proxy: Proxy, settings: BridgeSettings) -> None:
    """An unavailable Redis raises an error within the timeouts of the client."""
    proxy.refuse()
    with (
        connect(settings.model_copy(update={"redis_url": None, "redis_port": proxy.port}), 1) as client,
        pytest.raises(RedisError),
    ):
        read_status(Storage(client, settings))


def test_a_subscriber_works_off_what_status_told(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings, bus: EventBus
) -> None:
    """With a running subscriber the backlog falls to zero while its tasks become in flight."""
    register_handlers("t.all", "t.exact")
    bus.publish_many([Event(type="dream.created") for _ in range(100)])
    client.xgroup_create(Keys(settings.channel_prefix).journal, "tests", id="0")
    assert group_of(client, settings).backlog == 100
    start_subscriber()
    eventually(lambda: group_of(client, settings).backlog == 0, "the backlog is empty")
    found = group_of(client, settings)
    assert (found.in_flight, found.overdue, found.oldest_s) == (200, 0, None)

"""Catch-up: valid and invalid events in event keys are found and processed once."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import NoPermissionError

from bridge import BridgeSettings, Event
from bridge.events.encoded import EncodedEvent
from bridge.redis.client import connect
from bridge.storage import Storage
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.intake.intake import Intake
from bridge.subscriber.intake.writer import JournalWriter, split_by_bytes
from bridge.telemetry.counters import Counters
from bridge.telemetry.liveness import Liveness
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually


def intake_of(client: Redis, settings: BridgeSettings) -> tuple[Intake, CatchUp]:
    storage, counters, liveness = Storage(client, settings), Counters(), Liveness()
    writer = JournalWriter(storage, DeadLetterWriter(storage, counters), counters, liveness)
    catch_up = CatchUp(storage, writer, counters)
    return Intake(storage, writer, catch_up, counters, liveness), catch_up


def test_corrupt_event_keys_become_dead_letters(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """Catch-up reports event keys without a valid event, does not delete them, and takes all others."""
    register_handlers("t.all")
    client.set(f"{prefix}event:broken", b"{")
    client.hset(f"{prefix}event:hash", "a", "b")
    client.set(f"{prefix}event:good", Event(type="a.b", id="good").encode())
    start_subscriber()
    eventually(queues.length, "the valid event is dispatched")
    letters = {letter.origin: letter.reason for letter in Storage(client, settings).dead_letters.latest(10)}
    assert letters == {f"{prefix}event:broken": "json", f"{prefix}event:hash": "wrong_key_type"}
    assert client.exists(f"{prefix}event:broken", f"{prefix}event:hash") == 2


def test_keys_that_outlive_the_marks_are_not_taken_again(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    queues: Queues,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A key without TTL is ignored if its event is older than the marks can be; a recent event is accepted."""
    register_handlers("t.all")
    young, old = Event(type="a.b", id="young"), Event(type="a.b", id="old", timestamp=1_700_000_000_000)
    for event in (young, old):
        client.set(f"{prefix}event:{event.id}", event.encode())
    subscriber = start_subscriber()
    eventually(queues.length, "the recent event is dispatched")
    eventually(lambda: subscriber.info().get("stale"), "the old event is counted")
    eventually(lambda: "Skipped 1 event keys" in caplog.text, "the log reports it")
    assert queues.tasks() == {"t.all a.b young": 1}


def test_a_broken_key_is_reported_once(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """An invalid key is reported once, by all scans together, because its mark lives as long as events do."""
    register_handlers("t.all")
    client.set(f"{prefix}event:broken", b"{")
    subscriber = start_subscriber()
    letters = Storage(client, settings).dead_letters
    eventually(lambda: letters.latest(10), "the dead letter is written")
    (mark,) = client.keys(f"*{prefix}*parked:*")
    assert client.pttl(mark) > settings.event_ttl_ms
    subscriber.stop()
    client.set(f"{prefix}event:good", Event(type="a.b", id="good").encode(), ex=60)
    start_subscriber("two")
    eventually(queues.length, "another subscriber has scanned the keys")
    assert len(letters.latest(10)) == 1


def test_a_huge_key_is_not_read_whole(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, settings: BridgeSettings
) -> None:
    """A scan reads only one byte more than the limit of a key that is over it."""
    register_handlers("t.all")
    client.set(f"{prefix}event:huge", b"x" * 5_000_000, ex=60)
    before = client.info("stats")["total_net_output_bytes"]
    start_subscriber(max_event_bytes=1000)
    (letter,) = eventually(lambda: Storage(client, settings).dead_letters.latest(10), "the dead letter is written")
    assert (letter.reason, letter.size) == ("size", 1001)
    assert client.info("stats")["total_net_output_bytes"] - before < 4_000_000


def test_a_user_who_may_not_ask_for_ttls_is_told(client: Redis, prefix: str, settings: BridgeSettings) -> None:
    """Without permission for PTTL, a scan raises the error of Redis that names the command."""
    user = f"u{prefix[5:-1]}"
    client.acl_setuser(user, enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-pttl"])
    client.set(f"{prefix}event:one", Event(type="a.b", id="one").encode(), ex=60)
    address = SecretStr(settings.url.replace("redis://", f"redis://{user}:x@"))
    with connect(settings.model_copy(update={"redis_url": address})) as restricted:
        _, catch_up = intake_of(restricted, settings)
        with pytest.raises(NoPermissionError, match="pttl"):
            catch_up.scan(threading.Event())
    client.acl_deluser(user)


def test_it_has_not_caught_up_before_it_hears(client: Redis, prefix: str, settings: BridgeSettings) -> None:
    """Refilling a new journal restores events, but catch-up is complete only after the subscription and a scan."""
    stop = threading.Event()
    intake, catch_up = intake_of(connect(settings), settings)
    client.set(Keys(prefix).event("early"), Event(type="a.b", id="early").encode(), ex=60)
    threads = [threading.Thread(target=catch_up.run, args=(stop,))]
    threads[0].start()
    try:
        catch_up.refill()
        eventually(lambda: client.xlen(Keys(prefix).journal) == 1, "the event is restored")
        assert not catch_up.caught_up.wait(0.3)
        threads.append(threading.Thread(target=intake.run, args=(stop,)))
        threads[1].start()
        assert catch_up.caught_up.wait(10)
        assert client.pubsub_numsub(Keys(prefix).heartbeat)[0][1] == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)


#: How programs write the moment of an event; the last one does not.
FORMS = {
    "ms": lambda moment: int(moment.timestamp() * 1000),
    "seconds": lambda moment: moment.timestamp(),
    "iso": lambda moment: moment.isoformat().replace("+00:00", "Z"),
    "none": lambda moment: None,
}
LONG_S = 30 * 24 * 3600


def appended(client: Redis, prefix: str) -> Counter[str]:
    """Return how many journal entries each event has."""
    return Counter(fields[b"id"].decode() for _, fields in client.xrange(Keys(prefix).journal))


def test_an_event_whose_key_outlives_the_marks_is_appended_once(
    client: Redis, prefix: str, settings: BridgeSettings
) -> None:
    """Whether and however its age is written, a key without TTL, or with a long one, is no new event after a gap."""
    settings = settings.model_copy(update={"event_ttl_s": 1, "dedup_ttl_s": 2})
    catch_up = intake_of(client, settings)[1]
    now, events = datetime.now(UTC), []
    for form, write in FORMS.items():
        for ttl_s in (None, LONG_S):
            event = Event(type="a.b", id=f"{form}-{ttl_s}", timestamp=write(now))
            client.set(f"{prefix}event:{event.id}", event.encode(), ex=ttl_s)
            events.append(event)
    Storage(client, settings).journal.append([EncodedEvent.of(event, event.encode()) for event in events])
    once = dict.fromkeys((event.id for event in events), 1)
    keys = Keys(prefix)
    marks = [mark for event in events for mark in (keys.seen(event.id), keys.skipped("tests", event.id))]
    for gap in range(3):
        catch_up.scan(threading.Event())
        assert appended(client, prefix) == once
        if gap == 0:
            eventually(lambda: not client.exists(*marks), "the marks have expired", 10)
        else:
            client.delete(*marks)


@pytest.mark.parametrize("ttl_s", [None, LONG_S])
def test_a_missed_event_whose_key_outlives_the_marks_is_appended_if_its_time_says_that_it_is_new(
    client: Redis, prefix: str, settings: BridgeSettings, ttl_s: int | None
) -> None:
    """A recent time in any form counts; no time, and a time in the future, could belong to an event of any age."""
    catch_up = intake_of(client, settings)[1]
    now = datetime.now(UTC)
    moments = {form: write(now) for form, write in FORMS.items()}
    moments |= {"future": FORMS["ms"](now + timedelta(1)), "skewed": FORMS["ms"](now + timedelta(minutes=1))}
    for event_id, moment in moments.items():
        client.set(f"{prefix}event:{event_id}", Event(type="a.b", id=event_id, timestamp=moment).encode(), ex=ttl_s)
    for _ in range(3):
        catch_up.scan(threading.Event())
        assert appended(client, prefix) == {"ms": 1, "seconds": 1, "iso": 1, "skewed": 1}


def test_keys_that_are_no_new_events_are_read_once(own_server: RedisServer, prefix: str) -> None:
    """Scans of all subscribers read stale, invalid and looping keys once, until their size changes."""
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="tests", max_hops=1)
    filler = "x" * 20_000
    with Redis.from_url(own_server.url) as client:
        for number in range(50):
            old = Event(type="a.b", id=f"old{number}", payload=filler, timestamp=1_700_000_000_000)
            loop = Event(type="a.b", id=f"loop{number}", payload=filler, metadata={"hops": 2})
            client.set(f"{prefix}event:{old.id}", old.encode())
            client.set(f"{prefix}event:{loop.id}", loop.encode(), ex=600)
            client.set(f"{prefix}event:broken{number}", filler, ex=600)
            client.hset(f"{prefix}event:hash{number}", "field", filler)
        sent = []
        for scan in range(3):
            before = client.info("stats")["total_net_output_bytes"]
            intake_of(client, settings)[1].scan(threading.Event())
            sent.append(client.info("stats")["total_net_output_bytes"] - before)
            if scan == 0:
                assert appended(client, prefix) == {}
                assert len(Storage(client, settings).dead_letters.latest(1000)) == 150
        assert sent[0] > 3_000_000
        assert max(sent[1:]) < 100_000
        client.set(f"{prefix}event:broken1", Event(type="a.b", id="broken1").encode(), ex=600)
        intake_of(client, settings)[1].scan(threading.Event())
        assert appended(client, prefix) == {"broken1": 1}
        key = Keys(prefix).skipped("tests", "old1")
        assert settings.event_ttl_ms < client.pttl(key) <= settings.dedup_ttl_ms


def test_a_key_that_one_group_skips_is_read_by_another(client: Redis, prefix: str, settings: BridgeSettings) -> None:
    """What is too old or too large for the settings of one group may be an event to another."""
    strict = settings.model_copy(update={"group": "strict", "event_ttl_s": 10, "max_event_bytes": 500})
    old = Event(type="a.b", id="old", timestamp=FORMS["ms"](datetime.now(UTC) - timedelta(hours=1)))
    large = Event(type="a.b", id="large", payload="x" * 1000)
    for event in (old, large):
        client.set(f"{prefix}event:{event.id}", event.encode(), ex=3600)
    intake_of(client, strict)[1].scan(threading.Event())
    assert appended(client, prefix) == {}
    intake_of(client, settings)[1].scan(threading.Event())
    assert appended(client, prefix) == {"old": 1, "large": 1}


def test_catching_up_ends_where_redis_limits_replies(own_server: RedisServer, prefix: str) -> None:
    """When Redis closes the connection because a reply is too large, the next request is smaller."""
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="tests")
    stop = threading.Event()
    with Redis.from_url(own_server.url) as admin, connect(settings) as client:
        admin.config_set("client-output-buffer-limit", "normal 1mb 0 0")
        for number in range(20):
            event = Event(type="a.b", id=f"n{number}", payload="x" * 400_000)
            admin.set(f"{prefix}event:{event.id}", event.encode(), ex=600)
        counters, storage = Counters(), Storage(client, settings)
        writer = JournalWriter(storage, DeadLetterWriter(storage, counters), counters, Liveness())
        catch_up = CatchUp(storage, writer, counters)
        thread = threading.Thread(target=catch_up.run, args=(stop,))
        thread.start()
        try:
            catch_up.on_subscribed()
            assert catch_up.caught_up.wait(20)
        finally:
            stop.set()
            thread.join(10)
        assert admin.xlen(Keys(prefix).journal) == 20
        assert counters.snapshot()["errors"] > 0


def test_a_mark_lives_as_long_as_the_group_needs_that_keeps_marks_longest(
    client: Redis, settings: BridgeSettings
) -> None:
    """A subscriber that appends an event for all groups keeps its mark for the one with the longest dedup_ttl_s."""
    long = Storage(client, settings.model_copy(update={"group": "long", "event_ttl_s": 7200}))
    short = Storage(client, settings.model_copy(update={"event_ttl_s": 60, "dedup_ttl_s": 120}))
    event = Event(type="a.b")
    long.presence.report(Presence("one"), first=True)
    short.journal.append([EncodedEvent.of(event, event.encode())])
    assert (
        7200_000 + 3_500_000 < client.pttl(Keys(settings.channel_prefix).seen(event.id)) <= long.settings.dedup_ttl_ms
    )


def test_batches_are_limited_by_bytes() -> None:
    """A batch holds at most the given number of bytes, or one item."""
    assert list(split_by_bytes([3, 3, 4, 9, 1, 1], int, 7)) == [[3, 3], [4], [9], [1, 1]]
    assert list(split_by_bytes([], int, 7)) == []

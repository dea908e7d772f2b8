"""Catch-up: valid and invalid events in event keys are found and processed once."""

from __future__ import annotations

import threading

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import NoPermissionError

from bridge import BridgeSettings, Event
from bridge.redis.client import connect
from bridge.storage import Storage
from bridge.storage.keys import Keys
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.intake.intake import Intake
from bridge.subscriber.intake.writer import JournalWriter
from bridge.telemetry.counters import Counters
from bridge.telemetry.liveness import Liveness
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually


def intake_of(client: Redis, settings: BridgeSettings) -> tuple[Intake, CatchUp]:
    storage, counters, liveness = Storage(client, settings), Counters(), Liveness()
    writer = JournalWriter(storage, counters, liveness)
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

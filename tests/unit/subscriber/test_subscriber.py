"""The whole subscriber in this process: from events on the bus to messages in the queues of the broker."""

from __future__ import annotations

import os
import random
import re
from collections import Counter

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.config.settings import BATCH_BYTES
from bridge.redis.client import connect
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.subscriber import consumer_name
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber, make_app
from tests.support.queues import Queues
from tests.support.waiting import eventually


def test_events_become_one_message_per_matching_handler(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """Each event becomes one message for each matching handler; an event without a handler is counted."""
    register_handlers("t.exact", "t.glob")
    subscriber = start_subscriber()
    with EventBus(settings) as bus:
        bus.publish("dream.created", id="a")
        bus.publish("other.created", id="b")
    client.publish(f"{prefix}dream.image.rendered", Event(type="dream.image.rendered", id="c").encode())
    eventually(lambda: queues.length() == 3, "three messages are queued")
    assert queues.tasks() == {
        "t.exact dream.created a": 1,
        "t.glob dream.created a": 1,
        "t.glob dream.image.rendered c": 1,
    }
    eventually(lambda: subscriber.info().get("no_handler") == 1, "the event without handler is counted")
    eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"] == 0, "all entries are acknowledged")


def test_ten_thousand_events_in_three_copies_over_three_subscribers(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, queues: Queues
) -> None:
    """Copies in random order, received by three subscribers of one group, cause exactly one dispatch per event."""
    register_handlers("t.all")
    subscribers = [start_subscriber(name) for name in ("one", "two", "three")]
    copies = [Event(type="a.b", id=f"n{number}") for number in range(10_000)] * 3
    random.Random(3).shuffle(copies)
    for begin in range(0, len(copies), 500):
        with client.pipeline(transaction=False) as pipe:
            for event in copies[begin : begin + 500]:
                pipe.publish(prefix + event.type, event.encode())
            pipe.execute()

    def heard() -> int:
        return sum(subscriber.info().get("received", 0) for subscriber in subscribers)

    eventually(lambda: heard() == 90_000, "every subscriber has received every copy", 50)
    eventually(lambda: queues.length() >= 10_000, "all events are dispatched", 50)
    eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"] == 0, "all entries are acknowledged")
    counts = queues.tasks()
    assert len(counts) == 10_000
    assert set(counts.values()) == {1}


def test_a_backlog_from_before_any_subscriber_is_dispatched(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """A first subscriber dispatches the backlog of the journal, and external events that only their keys hold."""
    register_handlers("t.all")
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="a.b", id=f"j{number}") for number in range(700)])
    for number in range(1500):
        client.set(f"{prefix}event:k{number}", Event(type="a.b", id=f"k{number}").encode(), ex=3600)
    start_subscriber()
    eventually(lambda: queues.length() == 2200, "all events are dispatched")
    assert len(queues.tasks()) == 2200


def test_a_group_that_begins_late_skips_what_is_retained(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """With group_start="latest" only events after the first start are dispatched, even after restarts."""
    register_handlers("t.all")
    with EventBus(settings) as bus:
        bus.publish("a.b", id="journalled")
        client.set(f"{prefix}event:key", Event(type="a.b", id="key").encode(), ex=3600)
        start_subscriber("one", group_start="latest").stop()
        bus.publish("a.b", id="between")
        start_subscriber("two", group_start="latest")
        bus.publish("a.b", id="new")
    eventually(lambda: queues.length() == 2, "the new events are dispatched")
    assert queues.tasks() == {"t.all a.b between": 1, "t.all a.b new": 1}


def test_where_decides_before_a_task_is_sent(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings, queues: Queues
) -> None:
    """An event is not sent to a handler whose predicate refuses it, and a dead letter if it fails; others get it."""
    register_handlers("t.chosen", "t.all")
    start_subscriber()
    with EventBus(settings) as bus:
        for event_id, payload in [("yes", {"yes": True}), ("no", {"yes": False}), ("odd", None)]:
            bus.publish("a.b", payload, id=event_id)
    eventually(lambda: queues.length() == 4, "four messages are queued")
    assert Counter(name.split()[0] for name in queues.tasks()) == {"t.all": 3, "t.chosen": 1}
    (letter,) = Storage(client, settings).dead_letters.latest(10)
    assert (letter.reason, letter.event_id, letter.handler) == ("predicate_failed", "odd", "t.chosen")


def test_routes_by_event_type_yield_to_the_decorator(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues
) -> None:
    """bridge_routes choose queue and priority by type, first match first; options of @on_event take precedence."""
    register_handlers("t.plain", "t.own")
    start_subscriber(routes={"billing.paid": {"queue": "paid", "priority": 6}, "billing.*": {"queue": "billing"}})
    with EventBus(settings) as bus:
        bus.publish("billing.paid", id="a")
        bus.publish("billing.open", id="b")
    eventually(lambda: queues.length("billing") and queues.length("own"), "both events are sent")
    assert queues.tasks("paid\x06\x166") == {"t.plain billing.paid a": 1}
    assert queues.tasks("billing") == {"t.plain billing.open b": 1}
    assert queues.tasks("own\x06\x166") == {"t.own billing.paid a": 1}
    assert queues.tasks("own") == {"t.own billing.open b": 1}


def test_a_deleted_journal_heals(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """If journal or group disappear, the subscriber recreates them, counts this and continues."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    harms = [lambda key: client.delete(key), lambda key: client.xgroup_destroy(key, "tests")]  # noqa: PLW0108
    with EventBus(settings) as bus:
        for number, harm in enumerate(harms):
            assert harm(Keys(prefix).journal)
            eventually(lambda expected=number + 1: subscriber.info().get("journal_lost") == expected, "it is counted")
            bus.publish("a.b", id=f"after{number}")
            eventually(lambda name=f"t.all a.b after{number}": queues.tasks()[name], "dispatch continues")


@pytest.mark.parametrize("while_running", [True, False])
def test_a_deleted_journal_is_filled_again(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
    while_running: bool,
) -> None:
    """Events of a deleted journal are dispatched from their keys, and later events once."""
    register_handlers("t.all")
    journal = Keys(prefix).journal
    with EventBus(settings) as bus:
        if while_running:
            subscriber = start_subscriber(max_queue_length=1)  # only the first batch is dispatched
            bus.publish("a.b", id="first")
            eventually(lambda: queues.length() == 1, "the queue is full")
        bus.publish_many([Event(type="a.b", id=f"before{number}") for number in range(20)])
        assert client.delete(journal)
        bus.publish("a.b", id="after")  # recreates the journal, but not the group
    if while_running:
        eventually(lambda: subscriber.info().get("journal_lost"), "the loss is counted")
    else:
        start_subscriber()
    names: set[str] = set()

    def work_off() -> bool:
        waiting = queues.tasks()
        names.update(waiting)
        client.ltrim(f"broker:{prefix}celery", 0, -1 - waiting.total())  # only the oldest; more may have come
        return len(names) == 21 + while_running

    eventually(work_off, "all events are dispatched", 30)
    # The first event, which was dispatched before, may be the last that is restored.
    eventually(lambda: client.xlen(journal) == 21 + while_running, "all events are in the journal")


def test_a_dead_consumers_entries_are_taken_over(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues
) -> None:
    """Entries that a consumer read but never acknowledged are dispatched by another after claim_idle_s."""
    register_handlers("t.all")
    dead = Storage(connect(settings), settings).consumer("dead")
    dead.create_group("earliest")
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="a.b", id=f"n{number}") for number in range(20)])
    assert len(dead.read(100, 10)) == 20
    subscriber = start_subscriber(claim_idle_s=0.2, maintenance_interval_s=0.1)
    eventually(lambda: queues.length() == 20, "all events are dispatched")
    assert subscriber.info()["entries_claimed"] >= 20


def test_old_entries_are_trimmed_and_young_ones_stay(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """Maintenance removes entries past their lifetime from the journal, and only those."""
    register_handlers("t.all")
    key = Keys(prefix).journal
    subscriber = start_subscriber(maintenance_interval_s=0.1)
    client.delete(key)  # a stream accepts no ids below its last one
    eventually(lambda: subscriber.info().get("journal_lost"), "the journal is recreated")
    client.delete(key)
    client.xadd(key, {"event": Event(type="a.b", id="old").encode()}, id="1000000000000-1")
    with EventBus(settings) as bus:
        bus.publish("a.b", id="young")
    eventually(lambda: subscriber.info().get("trimmed") == 1, "the old entry is removed")
    eventually(lambda: queues.tasks()["t.all a.b young"] == 1, "the recent event is dispatched")
    assert [fields[b"id"] for _, fields in client.xrange(key)] == [b"young"]


def test_hostile_journal_entries_stop_nothing(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """Journal entries with invalid names, events or fields, which any publisher can write, stop no dispatch."""
    register_handlers("t.all")
    journal, event = Keys(prefix).journal, Event(type="a.b", id="named").encode()
    client.xadd(journal, {"event": event, "group": b"\xff"})
    client.xadd(journal, {"event": event, "group": b"tests", "handler": b"\xff"})
    client.xadd(journal, {"event": b"\xff"})
    client.xadd(journal, {b"\xff": b"\xff"})
    subscriber = start_subscriber()
    with EventBus(settings) as bus:
        bus.publish("a.b", id="good")
    eventually(lambda: queues.tasks() == {"t.all a.b good": 1}, "the valid event is dispatched")
    eventually(lambda: client.xpending(journal, "tests")["pending"] == 0, "all entries are acknowledged")
    assert sorted(letter.reason for letter in Storage(client, settings).dead_letters.latest(10)) == [
        "encoding",
        "replay_mismatch",
    ]
    eventually(lambda: subscriber.info().get("lost") == 1, "the entry without an event is counted")
    assert "errors" not in subscriber.info()


@pytest.mark.parametrize("another", [False, True], ids=["broker in the Redis of the bus", "broker in another"])
def test_batches_are_limited_by_the_bytes_of_their_messages(
    register_handlers,
    start_subscriber: StartSubscriber,
    server: RedisServer,
    own_server: RedisServer,
    prefix: str,
    settings: BridgeSettings,
    another: bool,
) -> None:
    """A batch is limited by the bytes of all its messages, not only of its events: at most 8 MB are pushed at once."""
    register_handlers("t.all", "t.expiring", "t.delayed", "t.limited")
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="a.b", id=f"n{number}", payload="x" * 20_000) for number in range(300)])
    subscriber = start_subscriber(app=make_app((own_server if another else server).url, prefix))
    eventually(lambda: subscriber.info().get("dispatched") == 1200, "all tasks are sent")
    assert subscriber._dispatch._dispatcher._reader.limit <= 2 * BATCH_BYTES / (4 * 20_000 * 4 / 3)


def test_no_two_subscribers_have_one_name() -> None:
    """Names differ even if host and process id are the same, as in containers."""
    names = {consumer_name("subscribe@container") for _ in range(50)}
    assert len(names) == 50
    assert all(re.fullmatch(rf"subscribe@container:{os.getpid()}:[0-9a-f]{{6}}", name) for name in names)

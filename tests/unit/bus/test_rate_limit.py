"""The rate limit of a source: the excess becomes dead letters, and other sources are not affected."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.events.encoded import EncodedEvent
from bridge.operations.history import History
from bridge.redis.client import connect
from bridge.storage.journal import Journal
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.outside import SIGNED, Outside
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually


def event(number: int, source: str | None = "noisy", payload: object = None) -> Event:
    name = source if source in ("noisy", "quiet", None) else "odd"
    return Event(type="a.b", id=f"{name}{number}", source=source, payload=payload, timestamp=1_760_000_000_000)


def record(number: int, source: str | None = "noisy", payload: object = None) -> EncodedEvent:
    made = event(number, source, payload)
    return EncodedEvent.of(made, made.encode())


def records(count: int, source: str | None = "noisy") -> list[EncodedEvent]:
    return [record(number, source) for number in range(count)]


@pytest.fixture
def redis(each_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(each_server.url, protocol=2) as client:
        yield client


@pytest.fixture
def journal(each_server: RedisServer, prefix: str) -> Journal:
    loaded = BridgeSettings.load(
        redis_url=each_server.url, channel_prefix=prefix, group="g", max_events_per_s_per_source=0.3
    )
    return Storage(connect(loaded), loaded).journal


def limited(count: int, of: int) -> list[str]:
    return ["appended"] * (of - count) + ["limited"] * count


def test_new_events_of_a_source_are_counted(journal: Journal, redis: Redis, prefix: str) -> None:
    """A source may add three events in ten seconds over all calls; each source, and no source, has its own count."""
    assert journal.append(records(2), limit=True) == limited(0, 2)
    assert journal.append(records(5), limit=True) == ["repeated", "repeated", "appended", "limited", "limited"]
    assert journal.append(records(4, "quiet"), limit=True) == limited(1, 4)
    assert journal.append(records(4, None), limit=True) == limited(1, 4)
    assert journal.append([record(9, "ünï\ncode {*}")], limit=True) == ["appended"]
    assert redis.xlen(Keys(prefix).journal) == 10
    assert all(8000 < redis.pttl(Keys(prefix).rate(source)) <= 10_000 for source in ("noisy", "quiet", ""))


def test_a_window_ends(journal: Journal, redis: Redis, prefix: str) -> None:
    """After ten seconds the source can publish again; the events that were refused stay refused."""
    journal.append(records(4), limit=True)
    redis.delete(Keys(prefix).rate("noisy"))  # as if the counter had expired
    assert journal.append(records(6), limit=True) == ["repeated"] * 3 + ["limited", "appended", "appended"]


def test_what_was_limited_is_settled(journal: Journal, redis: Redis, prefix: str) -> None:
    """A rate-limited event stays refused in catch-up and refill; its id is taken, but it does not count as known."""
    over = record(3)
    journal.append([*records(3), over], limit=True)
    assert journal.unseen(["noisy2", "noisy3", "noisy4"]) == ["noisy4"]
    assert journal.append([record(3, payload=1)], limit=True) == ["conflict"]
    assert journal.append([over]) == ["limited"]
    assert journal.known([("noisy2", "a.b", record(2).data), ("noisy3", "a.b", over.data)]) == [True, False]
    redis.delete(Keys(prefix).journal)
    assert journal.append([record(2), over, record(3, payload=1)], refill=True) == ["appended", "repeated", "repeated"]


def test_a_key_of_the_wrong_type_limits_nobody(journal: Journal, redis: Redis, prefix: str) -> None:
    """If a counter has the wrong type, no event is limited."""
    redis.lpush(Keys(prefix).rate("noisy"), "x")
    assert journal.append(records(5), limit=True) == limited(0, 5)


def test_without_a_limit_nothing_is_counted(settings: BridgeSettings, client: Redis) -> None:
    """Without the setting, or for events that are exempt from the limit, there is no counter."""
    Storage(client, settings).journal.append(records(5), limit=True)
    Storage(client, settings.model_copy(update={"max_events_per_s_per_source": 0.1})).journal.append(records(5))
    assert not client.exists(Keys(settings.channel_prefix).rate("noisy"))


def shout(client: Redis, prefix: str, events: list[Event], *, keep: bool = False) -> None:
    for one in events:
        if keep:
            client.set(f"{prefix}event:{one.id}", one.encode(), ex=3600)
        client.publish(f"{prefix}{one.type}", one.encode())


def test_all_subscribers_share_one_count(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
    caplog,
) -> None:
    """Ten of fifty events are dispatched for each group; the rest become complete dead letters with few log lines."""
    register_handlers("t.all")
    caplog.set_level(logging.WARNING)
    subscribers = [start_subscriber(name, max_events_per_s_per_source=1) for name in ("one", "two")]
    subscribers.append(start_subscriber("three", max_events_per_s_per_source=1, group="others"))
    shout(client, prefix, [event(number) for number in range(50)])
    shout(client, prefix, [event(number, "quiet") for number in range(10)])
    for group in ("tests", "others"):
        letters = Storage(client, settings.model_copy(update={"group": group})).dead_letters
        eventually(lambda letters=letters: letters.size().count == 40, f"the rest are dead letters of {group}")
        assert {letter.reason for letter in letters.latest(50)} == {"rate_limit"}
        assert all(letter.event() == event(int(letter.event_id[5:])) for letter in letters.latest(50))
    eventually(lambda: queues.length() == 40, "ten of each source are dispatched, for two groups")
    assert set(queues.tasks().values()) == {2}
    # A dead letter is counted after it is written.
    eventually(lambda: sum(one.info().get("rate_limited", 0) for one in subscribers) == 80, "all are counted")
    infos = [one.info() for one in subscribers]
    assert sum(info.get("rate_limited", 0) for info in infos[:2]) == infos[2]["rate_limited"] == 40
    assert not any(info.get("invalid") for info in infos)
    lines = [one for one in caplog.records if getattr(one, "action", "") == "source_rate_limited"]
    assert 2 <= len(lines) <= 3  # one from each subscriber that exceeded the limit first
    assert (
        "more events from 'noisy' than bridge_max_events_per_s_per_source allows, 1 a second over 10 s"
        in lines[0].getMessage()
    )


def test_a_retry_brings_it_in(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, replays: Replays, queues: Queues
) -> None:
    """`dead retry` sends rate-limited events to all handlers of the group, without a limit."""
    register_handlers("t.all")
    start_subscriber(max_events_per_s_per_source=0.1)
    shout(client, prefix, [event(number) for number in range(20)])
    eventually(lambda: replays.letters.size().count == 19, "all but one are dead letters")
    assert last(replays.dead(reason="rate_limit").run(FAST)).replayed == 19
    eventually(lambda: queues.length() == 20, "all events are dispatched")
    assert set(queues.tasks().values()) == {1}
    assert replays.letters.size().count == 0


def test_catch_up_is_not_limited(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """Many events of one source that are found in their keys after an outage are not limited; limited ones stay out."""
    register_handlers("t.all")
    for number in range(100):
        client.set(f"{prefix}event:{event(number).id}", event(number).encode(), ex=3600)
    subscriber = start_subscriber(max_events_per_s_per_source=0.1)
    eventually(lambda: queues.length() == 100, "all events are dispatched")
    shout(client, prefix, [event(number) for number in range(100, 110)], keep=True)
    letters = Storage(client, settings).dead_letters
    eventually(lambda: letters.size().count == 9, "the broadcast events are limited")
    client.client_kill_filter(_type="pubsub")
    eventually(lambda: subscriber.info().get("subscription_gaps"), "the interruption is noticed")
    shout(client, prefix, [event(1, "quiet")])
    eventually(lambda: queues.length() == 102, "catch-up has ended and intake continues")
    subscriber.stop()
    assert letters.size().count == 9
    assert queues.length() == 102


def test_what_was_limited_can_be_looked_at(journal: Journal, redis: Redis, prefix: str) -> None:
    """A rate-limited event has no journal entry, but its key still shows it."""
    journal.append(records(5), limit=True)
    redis.set(Keys(prefix).event("noisy4"), record(4).data)
    loaded = BridgeSettings.load(redis_url="redis://unused", channel_prefix=prefix, group="g")
    history = History(Storage(redis, loaded))
    assert set(history.entry_ids([f"noisy{number}" for number in range(5)])) == {"noisy0", "noisy1", "noisy2"}
    assert history.event("noisy4") == event(4)
    assert history.event("noisy3") is None


def signed(number: int, key_id: str = "new", source: str = "noisy") -> EncodedEvent:
    made = record(number, source)
    made.signer = key_id
    return made


def test_signed_events_count_under_their_key(journal: Journal) -> None:
    """Unsigned events with the source, the key id or the event ids of a signing program use up none of its budget."""
    assert journal.append(records(5), limit=True) == limited(2, 5)
    assert journal.append([record(9, "new"), record(10, "signer:new")], limit=True) == limited(0, 2)
    assert journal.append([signed(number) for number in range(3, 8)], limit=True) == limited(2, 5)
    assert journal.append([signed(6), signed(7), record(3), record(4)], limit=True) == [
        *("limited", "limited", "repeated", "repeated")
    ]
    assert journal.append([signed(8, "old")], limit=True) == ["appended"]


def test_unsigned_events_take_no_budget_of_a_signing_program(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """Junk under the source of a program that signs is limited; the signed events of that program are dispatched."""
    register_handlers("t.all")
    start_subscriber(**SIGNED, max_events_per_s_per_source=0.5)
    for number in range(30):
        outside.say(outside.unsigned(f"id{number}", "junk.x", source="billing-service"), "junk.x")
    eventually(lambda: outside.reasons() == ["rate_limit"] * 25, "the junk is limited")
    for number in range(20, 23):
        outside.say(outside.signed(f"id{number}", source="billing-service"))
    for number in range(23, 30):
        outside.say(outside.signed(f"id{number}", "junk.x", source="billing-service"), "junk.x")
    eventually(lambda: len(outside.letters()) == 30, "the signed events are limited as well, after five")
    assert outside.letters()[-1].detail.startswith("more events signed with key 'new' than")
    eventually(lambda: sum(name.startswith("t.all billing.paid") for name in queues.tasks()) == 3, "all are queued")
    assert queues.length() == 10


def test_own_publications_are_not_limited(
    bus: EventBus, settings: BridgeSettings, register_handlers, start_subscriber: StartSubscriber
) -> None:
    """Events that programs publish with the bridge are in the journal already and are not limited."""
    register_handlers("t.exact")
    subscriber = start_subscriber(max_events_per_s_per_source=0.1)
    for number in range(20):
        bus.publish("a.b", number)
    eventually(lambda: subscriber.info().get("received") == 20, "all events are received")
    assert subscriber.info().get("rate_limited", 0) == 0

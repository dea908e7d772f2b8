"""Intake: valid and invalid messages from pub/sub, also when the subscription is interrupted."""

from __future__ import annotations

import threading

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, SettingsError
from bridge.bus.admission import Admission
from bridge.bus.listener import ChannelListener, ReceivedBatch, restore_sources
from bridge.events import EncodedEvent
from bridge.redis.client import connect
from bridge.storage import Storage
from bridge.storage.keys import Keys
from bridge.storage.lua import script_text
from bridge.telemetry.counters import Counters
from tests.support.apps import StartSubscriber
from tests.support.outside import as_typescript_broadcasts
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.waiting import eventually


def test_killed_subscriptions_lose_nothing(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, queues: Queues
) -> None:
    """Events written to key and channel all arrive once while the subscription is cut repeatedly."""
    register_handlers("t.all")
    subscriber = start_subscriber()

    def gaps() -> int:
        return subscriber.info().get("subscription_gaps", 0)

    for number in range(600):
        event = Event(type="a.b", id=f"n{number}")
        with client.pipeline(transaction=False) as pipe:
            pipe.set(f"{prefix}event:{event.id}", event.encode(), ex=3600)
            pipe.publish(prefix + event.type, event.encode())
            pipe.execute()
        if number % 150 == 100:
            before = gaps()
            for connection in client.client_list():
                if connection["name"].startswith("bridge:tests:") and int(connection["psub"]):
                    client.client_kill_filter(_id=connection["id"])
            eventually(lambda before=before: gaps() > before, "the gap is counted")
    eventually(lambda: queues.length() == 600, "all events are dispatched")
    assert gaps() >= 4
    assert set(queues.tasks().values()) == {1}


BAD_MESSAGES = {
    "empty": b"",
    "json": b"{'id': 1}",
    "not_object": b"[1]",
    "encoding": b"\xff\xfe",
    "non_finite": b'{"id":"x","type":"a.b","payload":NaN}',
    "no_type": b'{"id":"x","type":"undefined"}',
    "surrogate": rb'{"id":"x","type":"a.b","payload":"\ud800","signature":"k:%b"}' % (b"0" * 64),
    "integer_range": b'{"id":"x","type":"a.b","payload":1180591620717411303424}',
    "no_id": b'{"type":"a.b"}',
    "id": b'{"id":"a b","type":"a.b"}',
    "channel_mismatch": b'{"id":"x","type":"c.d"}',
    "id_conflict": b'{"id":"taken","type":"a.b","payload":2}',
    "hop_limit": b'{"id":"x","type":"a.b","metadata":{"hops":17}}',
    "size": b'{"id":"x","type":"a.b","payload":"%s"}' % (b"x" * 2_000_000),
    "depth": b"[" * 100_000,
}


def test_bad_messages_become_dead_letters_and_stop_nothing(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """Each invalid message is kept once, with reason and first bytes, and the valid ones around it are dispatched."""
    register_handlers("t.all")
    subscribers = [start_subscriber("one"), start_subscriber("two")]
    client.publish(f"{prefix}a.b", Event(type="a.b", id="taken", payload=1).encode())
    for number, data in enumerate(BAD_MESSAGES.values()):
        client.publish(f"{prefix}a.b", data)
        client.publish(f"{prefix}a.b", Event(type="a.b", id=f"good{number}").encode())
    sent = 1 + 2 * len(BAD_MESSAGES)
    for subscriber in subscribers:
        eventually(lambda one=subscriber: one.info().get("received") == sent, "both have received everything")
    eventually(lambda: queues.length() == 1 + len(BAD_MESSAGES), "all valid events are dispatched")
    letters = eventually(
        lambda: len(found := Storage(client, settings).dead_letters.latest(100)) >= len(BAD_MESSAGES) and found,
        "all dead letters are written",
    )
    assert sorted(letter.reason for letter in letters) == sorted(BAD_MESSAGES)
    for letter in letters:
        assert letter.origin == f"{prefix}a.b"
        if letter.reason not in ("id_conflict", "hop_limit"):  # these can be decoded, and are kept in encoded form
            data = BAD_MESSAGES[letter.reason]
            assert (letter.size, letter.raw) == (len(data), data[:4096])


def test_dead_letters_are_capped(
    client: Redis, prefix: str, register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings
) -> None:
    """A flood of invalid messages leaves about max_dead_letters dead letters, the newest ones."""
    register_handlers("t.exact")
    subscriber = start_subscriber(max_dead_letters=200)
    for number in range(2000):
        client.publish(f"{prefix}a.b", b"bad %d" % number)
    eventually(lambda: subscriber.info().get("invalid") == 2000, "all messages are refused")
    letters = Storage(client, settings).dead_letters.latest(5000)
    assert 200 <= len(letters) <= 400  # Redis trims streams by whole nodes of 100
    assert letters[0].raw == b"bad 1999"


@pytest.mark.parametrize("prefix", ["a*b:", "a?[x]:"])
def test_glob_characters_in_the_prefix_are_literal(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, queues: Queues
) -> None:
    """A prefix with glob characters subscribes only to its own channels and scans only its own keys."""
    register_handlers("t.all")
    client.set("axb:event:foreign", Event(type="a.b", id="foreign").encode(), ex=60)
    client.set(f"{prefix}event:key", Event(type="a.b", id="key").encode(), ex=60)
    start_subscriber()
    client.publish("axb:a.b", Event(type="a.b", id="foreign2").encode())
    client.publish(f"{prefix}a.b", Event(type="a.b", id="heard").encode())
    eventually(lambda: queues.length() == 2, "both events of this prefix are dispatched")
    assert queues.tasks() == {"t.all a.b key": 1, "t.all a.b heard": 1}


def test_what_was_heard_before_a_cut_is_not_lost(client: Redis, prefix: str, settings: BridgeSettings) -> None:
    """Messages received before the connection breaks are delivered, even if no key holds them."""
    heard: list[str] = []
    cut, stop = threading.Event(), threading.Event()

    def on_heard(batch: ReceivedBatch) -> None:
        heard.extend(one.id for one in batch.events)
        if batch.count:
            cut.wait(10)  # blocks while more arrive and the connection is killed

    feed = ChannelListener(Storage(connect(settings), settings), Counters())
    listener = threading.Thread(target=feed.run, args=(stop, on_heard))
    listener.start()
    try:
        eventually(lambda: client.publish(f"{prefix}a.b", Event(type="a.b", id="first").encode()), "it is subscribed")
        eventually(lambda: heard == ["first"], "it is blocked")
        for number in range(10):
            client.publish(f"{prefix}a.b", Event(type="a.b", id=f"n{number}").encode())
        assert client.client_kill_filter(_type="pubsub") >= 1
        cut.set()
        eventually(lambda: heard == ["first", *(f"n{number}" for number in range(10))], "the others are delivered")
    finally:
        cut.set()
        stop.set()
        listener.join()


def test_dead_letters_that_cannot_be_kept_hold_up_no_event(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    queues: Queues,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While dead letters cannot be written, that is logged, and valid events are dispatched; then they are written."""
    register_handlers("t.all")
    client.set(Keys(prefix).dead("tests"), "no stream")
    subscriber = start_subscriber(maintenance_interval_s=0.1)
    for number in range(20):
        client.publish(f"{prefix}a.b", b"{broken")
        client.publish(f"{prefix}a.b", Event(type="a.b", id=f"n{number}").encode())
    eventually(lambda: queues.length() == 20, "the valid events are dispatched")
    # The events of a batch are appended before its dead letters are written, and dispatched by another thread.
    eventually(lambda: "Redis refuses a dead letter: WRONGTYPE" in caplog.text, "the log reports the refusal")
    assert subscriber.info()["errors"]
    client.delete(Keys(prefix).dead("tests"))
    eventually(lambda: client.exists(Keys(prefix).dead("tests")), "the dead letter is written")


def test_subscribers_share_the_broadcasts_by_type(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, queues: Queues
) -> None:
    """Subscribers with different listen_types receive their own types, and each event is dispatched once."""
    register_handlers("t.all")
    dreams, rest = (
        start_subscriber("dreams", listen_types=["dream.*"]),
        start_subscriber("rest", listen_types=["user.*", "index", "dream.*.x"]),
    )
    channels = ("dream.created", "dream.a.x", "user.created", "index", "unheard")
    for number, channel in enumerate(channels):
        client.publish(prefix + channel, Event(type=channel, id=f"e{number}").encode())
    expected = {f"t.all {channel} e{number}": 1 for number, channel in enumerate(channels[:-1])}
    eventually(lambda: queues.tasks() == expected, "the events of all listen_types are dispatched")
    # An event that both receive may be counted by one after the other has dispatched it.
    counts = [one.counters for one in (dreams, rest)]
    eventually(lambda: [count.snapshot().get("received") for count in counts] == [2, 3], "each receives its own types")
    assert [count.snapshot().get("subscription_gaps", 0) for count in counts] == [0, 0]
    assert client.client_kill_filter(_type="pubsub") >= 2
    eventually(
        lambda: rest.counters.snapshot().get("subscription_gaps") == 1, "one interruption is counted for all patterns"
    )


def test_types_that_match_nothing_are_refused() -> None:
    """An empty list of types or an invalid glob is refused at start-up."""
    for types, problem in (([], "listen_types"), (["dream.["], "not closed"), ([""], "empty pattern")):
        with pytest.raises(SettingsError, match=problem):
            BridgeSettings.load(listen_types=types)


def test_a_group_whose_creation_is_not_confirmed(
    register_handlers,
    start_subscriber: StartSubscriber,
    proxy: Proxy,
    client: Redis,
    prefix: str,
    queues: Queues,
    bus: EventBus,
) -> None:
    """A subscriber that does not know that it has created the group fills the journal, which was lost, all the same."""
    register_handlers("t.all")
    bus.publish("a.b", id="kept")
    client.delete(Keys(prefix).journal)
    proxy.drop_reply(client.script_load(script_text("create_group")).encode())
    start_subscriber(redis_url=proxy.url)
    assert proxy.done["reply dropped"] == 1
    eventually(lambda: queues.tasks() == {"t.all a.b kept": 1}, "the event is dispatched")


def test_a_small_broadcast_does_not_make_the_bridge_read_large_keys(client: Redis, settings: BridgeSettings) -> None:
    """A key is read for the real source as far as it may be the event of the broadcast, and no further."""
    storage, admission = Storage(client, settings), Admission(settings)
    event = Event(type="a.b", id="e1", payload="p")
    broadcast = EncodedEvent.receive(as_typescript_broadcasts(event).encode(), max_bytes=1024)
    kept = event.model_copy(update={"source": "real " + "x" * 150})
    client.set(storage.keys.event("e1"), kept.encode(), ex=60)
    (restored,) = restore_sources(storage, [broadcast], admission)
    assert restored.event.source == kept.source
    client.set(storage.keys.event("e1"), kept.model_copy(update={"payload": "p" * 500_000}).encode(), ex=60)
    before = client.info("stats")["total_net_output_bytes"]
    (same,) = restore_sources(storage, [broadcast], admission)
    assert same is broadcast
    assert client.info("stats")["total_net_output_bytes"] - before < 100_000

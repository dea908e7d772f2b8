"""Attacks on signed events: forged, moved or repeated events never run, and none of them blocks real events."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeError, BridgeSettings, Event, EventBus, InvalidEvent
from bridge.events.signing import Keyring
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from tests.support.apps import StartSubscriber
from tests.support.outside import SECRETS, SIGNED, Outside, as_typescript_broadcasts, now_ms
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually

HOUR_MS = 3_600_000
#: Tasks are overdue almost immediately, and checked several times a second.
HASTY = {"redispatch_after_s": 0.3, "maintenance_interval_s": 0.05}


def with_keys(settings: BridgeSettings, **changes: Any) -> BridgeSettings:
    address = {"redis_url": settings.url, "channel_prefix": settings.channel_prefix, "group": settings.group}
    return BridgeSettings.load(**(address | SIGNED | changes))


def payloads(queues: Queues, queue: str = "celery") -> list[Any]:
    """Return the payloads of the events in the queued messages, in order."""
    bodies = [json.loads(base64.b64decode(message["body"])) for message in queues.messages(queue)]
    return [args[0]["payload"] for args, _, _ in bodies]


def test_a_forgery_that_comes_first_takes_no_id(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """Unsigned events with the id of a real one, from all sources and before it, do not block it."""
    register_handlers("t.plain")
    outside.keep("id1", outside.unsigned("id1", payload="forged"))
    start_subscriber(**SIGNED)
    outside.say(outside.unsigned("id1", payload="forged too"))
    outside.write(outside.unsigned("id1", payload="forged three"))
    eventually(lambda: len(outside.letters()) == 3, "the forgeries are refused")
    outside.say(outside.signed("id1", payload="real"))
    eventually(lambda: queues.length() == 1, "the real event is queued")
    assert payloads(queues) == ["real"]


MOVED: dict[str, tuple[str, str]] = {
    "to another channel": ("billing.voided", "channel_mismatch"),
    "from another bus": ("billing.paid", "signature"),
    "under another id": ("billing.paid", "signature"),
    "to another type": ("billing.voided", "signature"),
}


@pytest.mark.parametrize("how", MOVED)
def test_a_signed_event_cannot_be_moved(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues, how: str
) -> None:
    """A signature covers the type and the id of an event and is valid for one prefix only."""
    register_handlers("t.plain")
    start_subscriber(**SIGNED)
    data = outside.signed("id1")
    if how == "from another bus":
        data = Keyring(SECRETS, "staging:").encode(Event(id="id1", type="billing.paid"))
    elif how == "under another id":
        data = data.replace(b'"id1"', b'"id2"')
    elif how == "to another type":
        data = data.replace(b"billing.paid", b"billing.voided")
    event_type, reason = MOVED[how]
    outside.say(data, event_type)
    eventually(lambda: outside.reasons() == [reason], "the event is refused")
    outside.say(outside.signed("good"))
    eventually(lambda: queues.length() == 1, "the event signed for this bus is queued")


def test_a_key_that_is_overwritten_after_dispatch(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """A forged key is refused when a deleted journal is refilled, and get_event() raises for it."""
    register_handlers("t.plain")
    subscriber = start_subscriber(**SIGNED)
    with EventBus(with_keys(outside.settings)) as bus:
        bus.publish("billing.paid", "real", id="id1")
        bus.publish("billing.paid", "real", id="id2")
        eventually(lambda: queues.length() == 2, "both events are queued")
        outside.keep("id1", outside.unsigned("id1", payload="forged"))
        outside.client.delete(outside.keys.journal)
        eventually(lambda: subscriber.info().get("journal_lost"), "the lost journal is noticed")
        eventually(lambda: outside.reasons() == ["signature"], "the forgery is refused")
        eventually(lambda: queues.length() == 3, "the other event is sent again")
        assert payloads(queues) == ["real"] * 3
        with pytest.raises(InvalidEvent, match="holds another event"):
            bus.get_event("id1")
        outside.client.delete(outside.keys.seen("id1"))
        with pytest.raises(InvalidEvent, match="signature"):
            bus.get_event("id1")
        outside.keep("id1", outside.signed("id3"))
        with pytest.raises(InvalidEvent, match="the key of event id1 holds event id3"):
            bus.get_event("id1")


@pytest.mark.parametrize("real", [False, True])
def test_a_task_is_not_sent_again_with_a_forged_event(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues, real: bool
) -> None:
    """If message and entry are lost, a task is sent again from its key only if the key holds the real event."""
    register_handlers("t.plain")
    with EventBus(with_keys(outside.settings)) as bus:
        subscriber = start_subscriber(**SIGNED, **HASTY)
        bus.publish("billing.paid", "real", id="id1")
        eventually(lambda: queues.length() == 1, "the message is queued")
        if not real:
            outside.keep("id1", outside.unsigned("id1", payload="forged"))
        outside.client.xtrim(outside.keys.journal, maxlen=0)
        assert outside.client.rpop(f"broker:{outside.keys.prefix}celery")
        if real:
            eventually(lambda: payloads(queues) == ["real"], "the task is sent again")
        else:
            eventually(lambda: outside.reasons() == ["event_expired"], "the missing event is reported")
            assert queues.length() == 0
    # A task is sent before it is counted.
    eventually(lambda: subscriber.info().get("redispatched", 0) == int(real), "redispatches are counted")


AGES: dict[str, tuple[int, str]] = {
    "too old": (-2 * HOUR_MS, "before it was received, bridge_signature_max_age_s is 3600"),
    "old": (-HOUR_MS // 2, ""),
    "a clock that is ahead": (240_000, ""),
    "of the future": (400_000, "after it was received: one of the clocks is wrong"),
}


@pytest.mark.parametrize("age", AGES)
def test_the_moment_of_signing(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues, age: str
) -> None:
    """Signed events are accepted up to signature_max_age_s after their timestamp, and up to 5 minutes before."""
    register_handlers("t.plain")
    ahead_ms, problem = AGES[age]
    outside.keep("by-key", outside.signed("by-key", timestamp=now_ms() + ahead_ms))
    start_subscriber(**SIGNED, signature_max_age_s=3600)
    outside.say(outside.signed("heard", timestamp=now_ms() + ahead_ms))
    outside.write(outside.signed("written", timestamp=now_ms() + ahead_ms))
    if problem:
        eventually(lambda: len(outside.letters()) == 3, "all events are refused")
        assert all(problem in letter.detail for letter in outside.letters())
    else:
        eventually(lambda: queues.length() == 3, "all events are queued")
    assert queues.length() == (0 if problem else 3)


def test_an_event_that_comes_again_when_its_marks_are_gone(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """Without marks, the age refuses a repeated event, whether broadcast or signed again by a replay."""
    register_handlers("t.plain")
    subscriber = start_subscriber(**SIGNED, signature_max_age_s=3600)
    data = outside.signed("id1", timestamp=now_ms() - 2 * HOUR_MS)
    again = outside.signed("id2", timestamp=now_ms() - 2 * HOUR_MS, metadata={"replay": {"signed": now_ms()}})
    outside.forget_marks()
    outside.say(data)
    outside.say(again)
    eventually(lambda: outside.reasons() == ["signature"] * 2, "both events are refused")
    assert subscriber.info().get("appended", 0) == queues.length() == 0


def test_a_backlog_makes_nothing_old(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """The age of an event is measured at the time of its journal entry, so waiting in the journal does not count."""
    register_handlers("t.plain")
    then = now_ms() - 2 * HOUR_MS
    outside.write(outside.signed("waited", timestamp=then - 1000), entry_id=f"{then}-0")
    outside.write(outside.signed("late", timestamp=then - 1000), entry_id=f"{now_ms()}-0")
    start_subscriber(**SIGNED, signature_max_age_s=3600)
    eventually(lambda: outside.reasons() == ["signature"], "the late event is refused")
    eventually(lambda: list(queues.tasks()) == ["t.plain billing.paid waited"], "the event that waited is queued")


def test_an_entry_of_the_future_makes_nothing_old(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """After an entry with an id of the future, all later ones have such ids; their events are not older for that."""
    register_handlers("t.plain")
    outside.write(outside.unsigned("other", "a.b"), f"{now_ms() + 72 * HOUR_MS}-0")
    outside.write(outside.signed("honest"))
    outside.write(outside.signed("old", timestamp=now_ms() - 2 * HOUR_MS))
    start_subscriber(**SIGNED, signature_max_age_s=3600)
    eventually(lambda: outside.reasons() == ["signature"], "the old event is refused")
    eventually(lambda: queues.tasks() == {"t.plain billing.paid honest": 1}, "the honest event is dispatched")


def test_a_replay_signs_what_is_signed_and_nothing_else(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, client: Redis, queues: Queues
) -> None:
    """A replay signs events that were signed, however old they are, and no others."""
    register_handlers("t.plain", "t.exact")
    settings = with_keys(outside.settings, signature_max_age_s=3600)
    then = now_ms() - 2 * HOUR_MS
    outside.write(outside.signed("real", timestamp=then, metadata={"of": "old"}), f"{then}-1", id="real")
    outside.write(outside.unsigned("forged", timestamp=then), f"{then}-2", id="forged")
    outside.write(outside.unsigned("free", "dream.created", timestamp=then), f"{then}-3", id="free")
    bad = outside.signed("bad", "dream.created", timestamp=then).replace(b'"payload":1', b'"payload":2')
    outside.write(bad, f"{then}-4", id="bad")
    outside.write(outside.signed("late", timestamp=then - 2 * HOUR_MS), f"{then}-5", id="late")
    bench = Replays(client, settings)
    progress = last(bench.journal().run(FAST))
    assert (progress.replayed, progress.skipped) == (3, 2)
    assert bench.ids() == ["real", "free", "bad"]
    signed = [outside.keyring.has_signed(fields[b"event"]) for fields in bench.replayed()]
    assert signed == [True, False, False]
    start_subscriber(**SIGNED, signature_max_age_s=3600)
    eventually(lambda: queues.length() == 6, "valid events are queued, and replayed ones again")
    assert outside.reasons() == ["signature"] * 2
    assert queues.tasks()["t.plain billing.paid real"] == 2


def test_dead_letters_are_signed_anew_when_they_are_retried(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, client: Redis, queues: Queues
) -> None:
    """A failure of days ago can be retried; a dead letter of a refused event cannot."""
    register_handlers("t.plain")
    start_subscriber(**SIGNED)
    bench = Replays(client, with_keys(outside.settings))
    text = f'{{"id":"old", "type":"billing.paid", "payload":1e0, "timestamp":{now_ms() - 100 * HOUR_MS}}}'
    old = Event.decode(outside.sign(text), max_bytes=10_000)  # the task encodes it differently
    assert not outside.keyring.has_signed(old.encode())
    bench.letters.add(_letter("failure", old, "t.plain"))
    outside.say(outside.unsigned("forged"))
    eventually(lambda: outside.reasons() == ["failure", "signature"], "two dead letters are written")
    progress = last(bench.dead().run(FAST))
    assert (progress.replayed, progress.skipped) == (1, 1)
    eventually(lambda: list(queues.tasks()) == ["t.plain billing.paid old"], "the task is sent again")
    careless = last(Replays(client, outside.settings).dead("careless").run(FAST))  # without required signatures
    assert (careless.replayed, careless.skipped) == (0, 1)
    assert outside.reasons() == ["signature"]


def test_a_replay_without_keys_says_so(outside: Outside, client: Redis) -> None:
    """A replay without a signing key raises an error and writes nothing, because it would break the signature."""
    outside.write(outside.signed("real"), id="real")
    bench = Replays(client, outside.settings)
    with pytest.raises(
        BridgeError, match="event real is signed, and a replay changes its JSON; set bridge_signing_key"
    ):
        last(bench.journal().run(FAST))
    assert bench.replayed() == []


@pytest.mark.parametrize("forged", [False, True])
def test_the_two_copies_of_the_typescript_bus(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues, forged: bool
) -> None:
    """The copy in the key, which has the real source, replaces the broadcast copy only if its signature is valid."""
    register_handlers("t.plain")
    start_subscriber(**SIGNED)
    kept, at_ms = outside.signed("id1", source="billing-service"), now_ms()
    broadcast = as_typescript_broadcasts(Event(id="id1", type="billing.paid", payload=1, timestamp=at_ms))
    heard = outside.keyring.encode(broadcast)
    outside.keep("id1", outside.unsigned("id1", source="somebody") if forged else kept)
    outside.say(heard)
    eventually(lambda: queues.length() == 1, "the event is queued")
    ((_, fields),) = outside.client.xrange(outside.keys.journal)
    assert fields[b"event"] == (heard if forged else kept)


def test_an_old_key_verifies_until_it_goes(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """During a rotation events of the old and the new key are accepted; once it is removed, the old key is refused."""
    register_handlers("t.plain")
    old = Keyring({"old": SECRETS["old"]}, outside.keys.prefix)
    first = start_subscriber(**SIGNED)
    outside.say(old.encode(Event(type="billing.paid", id="by-old")))
    outside.say(outside.signed("by-new"))
    eventually(lambda: queues.length() == 2, "both events are queued")
    first.stop()
    start_subscriber("second", signing_keys={"new": SECRETS["new"]}, require_signature=["billing.*"])
    outside.say(old.encode(Event(type="billing.paid", id="too-late")))
    eventually(lambda: outside.reasons() == ["signature"], "the old key is refused")
    assert "there is no key 'old' in bridge_signing_keys" in outside.letters()[0].detail


def _letter(reason: str, event: Event, handler: str) -> DeadLetter:
    return DeadLetter.of_event(reason, "boom", event, event.encode(), handler, task_id_for("tests", event.id, handler))

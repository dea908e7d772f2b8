"""Admission of events by type, depth and signature, from channels, event keys and the journal."""

from __future__ import annotations

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, InvalidEvent
from bridge.handlers.handler import registry
from bridge.subscriber.checks import refused_handlers
from tests.support.apps import StartSubscriber
from tests.support.outside import SECRETS, SIGNED, Outside
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually

PICKY = {"accepted_types": ["dream.*", "billing.*"], "rejected_types": ["billing.v*"]}


def bus_with(settings: BridgeSettings, **changes: object) -> EventBus:
    return EventBus(redis_url=settings.url, channel_prefix=settings.channel_prefix, source="tests", **changes)


def test_only_accepted_types_come_in(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """Events of types that the settings exclude become dead letters, from every source; all others run."""
    register_handlers("t.all")
    outside.keep("by-key", outside.unsigned("by-key", "other.type"))
    outside.keep("good-key", outside.unsigned("good-key", "dream.created"))
    start_subscriber(**PICKY)
    outside.say(outside.unsigned("heard", "other.type"), "other.type")
    outside.say(outside.unsigned("void", "billing.voided"), "billing.voided")
    outside.write(outside.unsigned("written", "billing.voided"))
    outside.say(outside.unsigned("good"), "billing.paid")
    eventually(lambda: queues.length() == 2, "the accepted events are queued")
    eventually(lambda: len(outside.letters()) == 4, "the others are dead letters")
    assert set(outside.reasons()) == {"not_accepted"}
    details = sorted(letter.detail for letter in outside.letters())
    assert details[0] == "type: 'billing.voided' matches a pattern in bridge_rejected_types [not_accepted]"
    assert details[-1] == "type: 'other.type' matches no pattern in bridge_accepted_types [not_accepted]"
    assert set(queues.tasks()) == {"t.all dream.created good-key", "t.all billing.paid good"}


def test_types_that_are_not_accepted_are_not_published(settings: BridgeSettings, client: Redis, prefix: str) -> None:
    """publish() raises an error before anything is written."""
    with bus_with(settings, **PICKY) as bus:
        bus.publish("dream.created")
        for event_type in ("other.type", "billing.voided"):
            with pytest.raises(InvalidEvent, match="not_accepted"):
                bus.publish_many([Event(type="dream.created", id="with-it"), Event(type=event_type, id=event_type)])
    assert client.keys(f"{prefix}event:with-it") == []


def test_events_of_few_levels(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, outside: Outside, queues: Queues
) -> None:
    """An event nested deeper than max_event_depth is not published, and becomes a dead letter from every source."""
    register_handlers("t.exact")
    flat, deep = {"a": [1]}, {"a": [[1]]}
    outside.keep("by-key", outside.unsigned("by-key", "dream.created", deep))
    start_subscriber(max_event_depth=3)
    outside.say(outside.unsigned("heard", "dream.created", deep), "dream.created")
    outside.write(outside.unsigned("written", "dream.created", deep))
    outside.say(outside.unsigned("flat", "dream.created", flat), "dream.created")
    eventually(lambda: outside.reasons() == ["depth"] * 3, "the deep events are refused")
    eventually(lambda: list(queues.tasks()) == ["t.exact dream.created flat"], "the flat event is queued")
    with bus_with(settings, max_event_depth=3) as bus:
        bus.publish("dream.created", flat)
        with pytest.raises(InvalidEvent, match="nested deeper than 3 levels"):
            bus.publish("dream.created", deep)


def test_large_events(register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues) -> None:
    """An event that is too large becomes a dead letter from every source; a stored one may have become longer."""
    register_handlers("t.exact")
    large, longer = "x" * 4000, "x" * 1500
    outside.keep("by-key", outside.unsigned("by-key", "dream.created", large))
    start_subscriber(max_event_bytes=1024)
    outside.say(outside.unsigned("heard", "dream.created", large), "dream.created")
    outside.write(outside.unsigned("written", "dream.created", large))
    outside.write(outside.unsigned("stored", "dream.created", longer))
    eventually(lambda: outside.reasons() == ["size"] * 3, "the large events are refused")
    eventually(lambda: list(queues.tasks()) == ["t.exact dream.created stored"], "the other event is queued")


def test_what_was_not_accepted_runs_once_it_is(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, client: Redis, queues
) -> None:
    """After accepted_types has changed, dead letters can be retried, except for events that need a signature."""
    register_handlers("t.exact", "t.plain")
    first = start_subscriber(accepted_types=["other.*"])
    outside.say(outside.unsigned("one", "dream.created"), "dream.created")
    outside.say(outside.unsigned("two"))
    eventually(lambda: len(outside.letters()) == 2, "both events are refused")
    first.stop()
    start_subscriber("second", **SIGNED)
    settings = BridgeSettings.load(
        redis_url=outside.settings.url, channel_prefix=outside.settings.channel_prefix, group="tests", **SIGNED
    )
    progress = last(Replays(client, settings).dead().run(FAST))
    assert (progress.replayed, progress.skipped) == (1, 1)
    eventually(lambda: queues.tasks() == {"t.exact dream.created one": 1}, "the event that is accepted now is queued")


def test_handlers_of_types_that_never_come(register_handlers, settings: BridgeSettings) -> None:
    """A handler whose only type is refused is reported; a handler with a glob pattern is not."""
    register_handlers("t.exact", "t.plain")
    picky = BridgeSettings.load(redis_url=settings.url, accepted_types=["billing.*"])
    patterns = {handler.task_name: handler.patterns for handler in registry}
    (finding,) = refused_handlers(picky, patterns)
    assert finding.setting == "handler t.exact"
    assert "'dream.created' matches no pattern in bridge_accepted_types" in finding.problem
    assert refused_handlers(settings, patterns) == []


def test_signed_events_of_required_types_are_let_in(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """Events of types that require a signature run only if signed, from every source; other types always run."""
    register_handlers("t.all")
    outside.keep("s1", outside.signed("s1"))
    outside.keep("u1", outside.unsigned("u1"))
    outside.keep("other1", outside.unsigned("other1", "dream.created"))
    start_subscriber(**SIGNED)
    outside.say(outside.signed("s2"))
    outside.say(outside.unsigned("u2"))
    outside.say(outside.unsigned("other2", "dream.created"), "dream.created")
    outside.write(outside.signed("s3"))
    outside.write(outside.unsigned("u3"))
    eventually(lambda: queues.length() == 5, "the accepted events are queued")
    eventually(lambda: len(outside.letters()) == 3, "the others are dead letters")
    assert set(outside.reasons()) == {"signature"}
    assert {Event.decode(letter.raw, max_bytes=1000).id for letter in outside.letters()} == {"u1", "u2", "u3"}
    assert {name.split()[-1] for name in queues.tasks()} == {"s1", "s2", "s3", "other1", "other2"}


def test_signed_bytes_stay_as_they_came(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, prefix: str
) -> None:
    """A subscriber that requires no signatures stores a signed event byte for byte, so that others can verify it."""
    register_handlers("t.all")
    start_subscriber(group="careless", max_events_per_s_per_source=None)
    text = outside.unsigned("odd").decode().replace('{"id":"odd",', '{ "more" : 1.50e0,\t"id":"odd",')
    outside.say(data := outside.sign(text, "old"))
    eventually(lambda: outside.client.xlen(outside.keys.journal) == 1, "the event is in the journal")
    ((_, fields),) = outside.client.xrange(outside.keys.journal)
    assert fields[b"event"] == data
    assert outside.keyring.has_signed(data)


def test_publishers_of_the_library_sign(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues
) -> None:
    """With signing keys, EventBus signs what it publishes and verifies what it reads; without them it is refused."""
    register_handlers("t.all")
    start_subscriber(**SIGNED)
    with bus_with(settings, **SIGNED) as bus, bus_with(settings) as careless:
        heard: list[Event] = []
        bus.subscribe("billing.*", heard.append)
        event = bus.publish("billing.paid", 1).event
        forged = careless.publish("billing.paid", 2).event
        careless.publish("billing.other", 3)
        with bus_with(settings, signing_keys=SECRETS) as other:
            last_one = other.publish("billing.paid", 4).event
        eventually(lambda: last_one.id in [one.id for one in heard], "the event of another process is received")
        assert [one.id for one in heard] == [event.id, last_one.id]
        assert bus.get_event(last_one.id) == careless.get_event(last_one.id)
        with pytest.raises(InvalidEvent, match="does not end with a signature"):
            bus.get_event(forged.id)
    eventually(lambda: queues.length() == 2, "the signed events are queued")

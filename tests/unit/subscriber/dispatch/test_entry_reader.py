"""Reading ahead: how many entries, by the size of those that were read."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from bridge import BridgeSettings, Event, EventBus
from bridge.broker import Outbox
from bridge.config import BATCH_BYTES
from bridge.handlers import registry
from bridge.storage import Entry, Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.members import Members
from bridge.telemetry import Counters


def dispatcher_of(bus: EventBus, settings: BridgeSettings, app: Celery) -> Dispatcher:
    app.finalize()
    storage = Storage(bus.client, settings)
    storage.consumer("one").create_group("earliest")
    members, outbox = Members(storage, registry, "one"), Outbox(app, settings)
    dead_letters, consumer = DeadLetterWriter(storage, Counters()), storage.consumer("one")
    return Dispatcher(storage, outbox, registry, dead_letters, Counters(), consumer, members)


def size(entries: Sequence[Entry]) -> int:
    return sum(len(entry.data or b"") for entry in entries)


def test_one_batch_of_large_events_after_small_ones_is_too_large(
    register_handlers, bus: EventBus, settings: BridgeSettings, app: Celery
) -> None:
    """When large events follow small ones, the first batch of them shows it, and the next ones are smaller."""
    register_handlers("t.all")
    settings = settings.model_copy(update={"batch_size": 50, "block_ms": 1})
    dispatcher = dispatcher_of(bus, settings, app)
    large = 200_000
    bus.publish_many([Event(type="a.b") for _ in range(400)])
    bus.publish_many([Event(type="a.b", payload="x" * large) for _ in range(160)])
    sizes, entries = [], 0
    while entries < 560:
        entries += dispatcher.step()
        sizes.append(size(dispatcher._reader.ahead))
    dispatcher.finish()
    assert len([one for one in sizes if one > BATCH_BYTES + large]) == 1


def test_after_a_backlog_of_small_events_only_the_beginning_of_the_next_is_read(
    register_handlers, bus: EventBus, settings: BridgeSettings, app: Celery
) -> None:
    """When a backlog is over, the limit falls to that of a first batch."""
    register_handlers("t.all")
    dispatcher = dispatcher_of(bus, settings.model_copy(update={"block_ms": 1}), app)
    bus.publish_many([Event(type="a.b") for _ in range(1500)])
    entries, limits = 0, []
    while entries < 1500:
        entries += dispatcher.step()
        limits.append(dispatcher._reader.limit)
    assert max(limits) == 500
    bus.publish("a.b")
    while not dispatcher.step():
        pass
    assert dispatcher._reader.limit == 32

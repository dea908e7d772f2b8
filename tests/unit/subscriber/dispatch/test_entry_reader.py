"""Reading ahead: how many entries, by the size of those that were read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
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


def test_large_events_after_small_ones_are_dispatched_a_few_at_a_time(
    register_handlers, bus: EventBus, settings: BridgeSettings, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When large events follow small ones, one read is too large, but no batch: all are dispatched once, in order."""
    register_handlers("t.all")
    settings = settings.model_copy(update={"batch_size": 50, "block_ms": 1})
    dispatcher = dispatcher_of(bus, settings, app)
    large = 200_000
    ids = [f"e{number}" for number in range(560)]
    bus.publish_many([Event(type="a.b", id=one) for one in ids[:400]])
    bus.publish_many([Event(type="a.b", id=one, payload="x" * large) for one in ids[400:]])
    batches: list[Sequence[Entry]] = []
    route = dispatcher._router.route
    monkeypatch.setattr(dispatcher._router, "route", lambda entries: (batches.append(entries), route(entries))[1])
    read = [0]
    while sum(map(len, batches)) < len(ids):
        dispatcher.step()
        read.append(size(dispatcher._reader.ahead))
    dispatcher.finish()
    assert len([after for before, after in pairwise(read) if after > max(before, BATCH_BYTES + large)]) == 1
    assert max(map(size, batches)) <= BATCH_BYTES
    assert [json.loads(entry.data or b"")["id"] for batch in batches for entry in batch] == ids


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

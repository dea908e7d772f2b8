"""The events of the original TypeScript bus: each arrives as it was published, or is one dead letter."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kombu.utils.json import loads
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.intake.writer import JournalWriter
from bridge.telemetry import Counters, Liveness
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.typescript_shapes import ARRIVING, REFUSED, SHAPES, Refused, Shape
from tests.support.waiting import eventually


def handled(queues: Queues) -> dict[str, dict[str, Any]]:
    """Return the events that handlers get, by id, decoded from their task messages as a worker decodes them."""
    bodies = [loads(base64.b64decode(message["body"])) for message in queues.messages()]
    events = [Event.from_dict(args[0]).to_dict() for args, _, _ in bodies]
    assert len({event["id"] for event in events}) == len(events), "each arrives once"
    return {event["id"]: event for event in events}


@dataclass
class TypeScriptBus:
    """Sends as the original does: the key on one connection, the broadcast on another, without waiting in between."""

    store: Redis
    publisher: Redis
    keys: Keys

    def keep(self, shape: Shape) -> None:
        self.store.execute_command("SETEX", self.keys.event(shape.id), 86_400, shape.kept)

    def broadcast(self, shape: Shape) -> None:
        self.publisher.publish(self.keys.channel(shape.type), shape.broadcast)


@pytest.fixture
def bus(server: RedisServer, prefix: str) -> Iterator[TypeScriptBus]:
    with server.client() as store, server.client() as publisher:
        yield TypeScriptBus(store, publisher, Keys(prefix))


def letters_of(client: Redis, settings: BridgeSettings) -> list[DeadLetter]:
    return Storage(client, settings).dead_letters.latest(1000)


def test_the_shapes_of_the_typescript_bus(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: TypeScriptBus,
    client: Redis,
    settings: BridgeSettings,
    queues: Queues,
) -> None:
    """Each shape of the table arrives as the table says, or is one dead letter, also after a later scan of the keys."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    for shape in SHAPES:
        bus.keep(shape)
        bus.broadcast(shape)
    eventually(lambda: subscriber.info().get("received") == len(SHAPES), "all are received")
    eventually(lambda: queues.length() >= len(ARRIVING), "those that arrive are dispatched")
    eventually(lambda: len(letters_of(client, settings)) >= len(REFUSED), "the others are dead letters")
    repaired = sum("half" in shape.name for shape in ARRIVING)
    eventually(lambda: subscriber.info().get("repaired") == repaired, "repaired texts are counted")
    subscriber.stop()
    scan_again(client, settings)
    events = handled(queues)
    for shape in ARRIVING:
        assert events.get(shape.arrived()["id"]) == shape.arrived(), shape.name
    assert repr(events["s-number-the-largest-in-digits"]["payload"]["amount"]) == "999999999999999934464"
    assert len(events) == len(ARRIVING)
    found = sorted((one.reason, one.size) for one in letters_of(client, settings))
    assert found == sorted((shape.outcome.reason, size_of(shape)) for shape in REFUSED)
    (hint,) = {one.detail for one in letters_of(client, settings) if b"THREAT_DETECTED" in one.raw}
    assert "the type was undefined in JavaScript; set it where the event is published" in hint


def size_of(shape: Shape) -> int:
    """Return the size of the message in the dead letter: one whose event was decoded holds its JSON without source."""
    if shape.outcome == Refused("hop_limit"):
        return len(json.dumps(shape.fields, separators=(",", ":")))
    return len(shape.broadcast)


def scan_again(client: Redis, settings: BridgeSettings) -> None:
    """Scan the event keys, as after an interruption."""
    storage, counters = Storage(client, settings), Counters()
    writer = JournalWriter(storage, DeadLetterWriter(storage, counters), counters, Liveness())
    CatchUp(storage, writer, counters).scan(threading.Event())
    assert counters.snapshot() == {}, "it finds nothing new"


def test_keys_alone(register_handlers, start_subscriber: StartSubscriber, bus: TypeScriptBus, queues: Queues) -> None:
    """Shapes that were published while no subscriber ran are found in their keys, and arrive in the same way."""
    register_handlers("t.all")
    for shape in ARRIVING:
        bus.keep(shape)
    start_subscriber()
    eventually(lambda: queues.length() >= len(ARRIVING) - 1, "all are dispatched")
    events = handled(queues)
    for shape in ARRIVING:
        if not isinstance(shape.fields.get("source"), dict):  # which is invalid in the key
            source = shape.fields.get("source") if shape.id == "undefined" else shape.arrived().get("source")
            assert events.get(shape.arrived()["id"]) == shape.arrived(source=source), shape.name


def test_broadcasts_before_their_keys(
    register_handlers, start_subscriber: StartSubscriber, bus: TypeScriptBus, queues: Queues
) -> None:
    """Without its key an event arrives without a source, never with the marker, and in all else as it was published."""
    register_handlers("t.all")
    start_subscriber()
    for shape in ARRIVING:
        bus.broadcast(shape)
    eventually(lambda: queues.length() >= len(ARRIVING), "all are dispatched")
    events = handled(queues)
    assert b"RedisEventBus" not in bus.store.xrange(bus.keys.journal).__repr__().encode()
    for shape in ARRIVING:
        assert events.get(shape.arrived()["id"]) == shape.arrived(source=None), shape.name

"""What the broker shows of its queues."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.broker.connection import broker_id
from bridge.broker.outbox import Outbox
from bridge.broker.queue_probe import QueueLoad, QueueProbe
from bridge.events.clock import now_ms
from bridge.events.encoded import EncodedEvent
from tests.handlers import HANDLERS
from tests.support.waiting import calls

ETA = datetime(2040, 1, 1, tzinfo=UTC)
#: Headers of a message, when it began to wait, and whether that is its eta.
MESSAGES: dict[str, tuple[Any, int | None, bool]] = {
    "a task of an event": ({"bridge_sent_ms": "1700000000000"}, 1_700_000_000_000, False),
    "one with an eta": ({"bridge_sent_ms": "1", "eta": ETA.isoformat()}, int(ETA.timestamp() * 1000), True),
    "a retry": ({"bridge_sent_ms": "1700000000000", "retries": 1}, None, False),
    "one that was given back": ({"bridge_sent_ms": "1700000000000", "redelivered": True}, None, False),
    "another task": ({"id": "x"}, None, False),
    "an eta that is not a time": ({"eta": "soon"}, None, False),
    "no headers": (None, None, False),
}


@pytest.fixture
def probe(app: Celery) -> Iterator[QueueProbe]:
    made = QueueProbe(app)
    yield made
    made.close()


@pytest.fixture
def push(client: Redis, prefix: str) -> Callable[..., Any]:
    def push_to(queue: str, *messages: bytes) -> None:
        client.lpush(f"broker:{prefix}{queue}", *messages)

    return push_to


@pytest.mark.parametrize(("headers", "since_ms", "delayed"), MESSAGES.values(), ids=MESSAGES)
def test_since_when_the_next_message_waits(
    probe: QueueProbe, push: Callable[..., Any], headers: Any, since_ms: int | None, delayed: bool
) -> None:
    """The next message is the one that was pushed first; it waits since it was sent, or from its eta on."""
    push("q", json.dumps({"headers": headers}).encode(), b'{"headers": {"bridge_sent_ms": "1"}}')
    load = probe.measure(["q"])["q"]
    assert (load.messages, load.consumers, load.since_ms, load.delayed) == (2, None, since_ms, delayed)


def test_messages_that_the_bridge_and_celery_send(
    app: Celery, settings: BridgeSettings, probe: QueueProbe, client: Redis, prefix: str
) -> None:
    """The age and the eta of real messages are read, those of other priorities included."""
    app.finalize()
    outbox, before_ms = Outbox(app, settings), now_ms()
    outbox.refresh()
    for handler in ("t.exact", "t.delayed", "t.limited"):
        event = EncodedEvent.read(Event(type="dream.created", id="e").encode())
        outbox.send([outbox.prepare(HANDLERS[handler], event, b"1-1")])
    found = probe.measure(["celery", "limited", "missing"])
    assert [found[name].messages for name in ("celery", "limited", "missing")] == [2, 1, 0]
    assert found["missing"] == QueueLoad(0)
    assert before_ms <= (found["limited"].since_ms or 0) <= now_ms()
    client.rpop(f"broker:{prefix}celery")
    delayed = probe.measure(["celery"])["celery"]
    assert delayed.delayed
    assert before_ms + 590_000 < (delayed.since_ms or 0) < now_ms() + 610_000
    outbox.close()


def test_the_next_message_is_recognised(
    probe: QueueProbe, push: Callable[..., Any], client: Redis, prefix: str
) -> None:
    """The next message stays the same while others are pushed, and is another one when it was taken."""
    push("q", b"one", b"two")
    first = probe.measure(["q"])["q"]
    push("q", b"three")
    assert probe.measure(["q"])["q"].heads == first.heads
    client.rpop(f"broker:{prefix}q")
    assert set(probe.measure(["q"])["q"].heads).isdisjoint(first.heads)


def test_a_key_of_another_type(probe: QueueProbe, push: Callable[..., Any], client: Redis, prefix: str) -> None:
    """A queue whose key is not a list cannot be measured; the others can."""
    client.set(f"broker:{prefix}broken", "x")
    push("q", b"one")
    assert {name: load.messages for name, load in probe.measure(["broken", "q"]).items()} == {"q": 1}


def test_the_length_does_not_matter(probe: QueueProbe, push: Callable[..., Any], client: Redis) -> None:
    """A queue of 1,000,000 messages takes two commands that do not depend on its length, and no other one."""
    for _ in range(10):
        push("q", *[b"%d" % number for number in range(100_000)])
    probe.measure(["q"])
    before = calls(client)
    load = probe.measure(["q"])["q"]
    spent = {name: count - before.get(name, 0) for name, count in calls(client).items() if name in ("llen", "lindex")}
    assert load.messages == 1_000_000
    assert spent == {"llen": 4, "lindex": 1}  # one list for each of four priorities


def test_other_brokers_are_not_measured() -> None:
    """Brokers other than Redis and RabbitMQ have no figures, rather than wrong ones."""
    with Celery("memory", broker="memory://", set_as_current=False) as app:
        assert QueueProbe(app).measure(["q"]) == {}


def test_names_of_brokers() -> None:
    """Two applications have the same broker if server and database are the same; credentials do not matter."""

    def name(url: str) -> str:
        with Celery("named", broker=url, set_as_current=False) as app:
            return broker_id(app)

    here = name("redis://localhost:6379/0")
    assert name("redis://user:secret@localhost:6379") == here
    others = ("redis://localhost:6379/1", "redis://localhost:6380/0", "amqp://localhost:6379/0", "redis://elsewhere/0")
    assert len({here, *map(name, others)}) == 1 + len(others)

"""The TypeScript bus, as ``typescript/redis_event_bus.mjs`` imitates it: no event is lost or handled twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.support.outside import as_typescript_broadcasts
from tests.support.processes import STOP_S, Processes, stops_worker
from tests.support.requirements import program
from tests.support.subscribers import subscribers
from tests.support.waiting import eventually

SCRIPT = str(Path(__file__).parent / "redis_event_bus.mjs")
DREAM = {"dreamId": 7, "text": "Straße – 夢 🌙", "tags": ["a", None, True], "depth": {"score": 0.5, "n": -(2**53) + 1}}

#: A handler that returns the source of its event, in addition to those of ``tests/app.py``.
SOURCE_APP = """
from bridge import on_event
from tests.app import app, effect

@on_event("dream.created")
def source(event):
    effect("source", event.source)
"""

Publish = Callable[..., list[str]]


@pytest.fixture
def publish(server: RedisServer, prefix: str) -> Publish:
    """Publish events from the TypeScript bus; return their ids once all are acknowledged."""
    node = program("node")

    def publish(event_type: str, count: int, duplicates: int = 0) -> list[str]:
        command = [node, SCRIPT, "publish", server.url, prefix, event_type, str(count), "--duplicates", str(duplicates)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        ids = done.stdout.split()
        assert done.returncode == 0, done.stderr
        assert len(set(ids)) == len(ids) == count
        return ids

    return publish


def start_listener(processes: Processes, prefix: str, pattern: str, count: int) -> Callable[[], list[dict[str, Any]]]:
    """Start a TypeScript listener and wait until it is subscribed; return a function that waits for its events."""
    node = program("node")
    url = processes.environment["REDIS_URL"]
    listener = processes.start(node, SCRIPT, "listen", url, prefix, pattern, str(count), name="listener")
    eventually(lambda: processes.log("listener").startswith("ready\n"), "the TypeScript bus is subscribed")

    def heard() -> list[dict[str, Any]]:
        assert listener.wait(20) == 0, processes.log("listener")
        return [json.loads(line) for line in processes.log("listener").split("\n")[1:] if line]

    return heard


def effects(client: Redis, prefix: str, count: int) -> Callable[[], Counter[str]]:
    """Wait for *count* effects; return a function that counts the effects at the time of its call."""
    key = f"{prefix}effects"
    eventually(lambda: client.llen(key) >= count, f"there are {count} effects", timeout_s=40)
    return lambda: Counter(effect.decode() for effect in client.lrange(key, 0, -1))


def refused(client: Redis, prefix: str) -> list[dict[bytes, bytes]]:
    """Return the dead letters of dream events."""
    keys = Keys(prefix)
    dreams = (keys.channel("dream.").encode(), keys.event("").encode())
    letters = [fields for _, fields in client.xrange(keys.dead("tests"))]
    return [fields for fields in letters if fields[b"origin"].startswith(dreams)]


def expected(ids: list[str]) -> Counter[str]:
    """Return the expected effects: one of each of the two handlers of ``dream.created`` per event."""
    return Counter(f"{handler} {event_id}" for handler in ("plain", "glob") for event_id in ids)


def end_gently(workers: list[Any]) -> None:
    """Let the workers finish their tasks, so that any duplicate effects exist afterwards."""
    for worker in workers:
        worker.terminate()
    for worker in workers:
        assert worker.wait(STOP_S) == 0


@stops_worker
def test_each_handler_runs_once_per_event_with_three_workers(
    publish: Publish, processes: Processes, client: Redis, prefix: str
) -> None:
    """Of 1,000 events, 100 of them published twice, each handler runs each once, with three subscribed workers."""
    workers = [processes.worker(name) for name in ("w1", "w2", "w3")]
    eventually(lambda: subscribers(client, prefix) == 3, "three workers are subscribed")
    ids = publish("dream.created", 1000, duplicates=100)
    counted = effects(client, prefix, 2000)
    end_gently(workers)
    assert counted() == expected(ids)
    assert client.xlen(Keys(prefix).journal) == 1000
    assert refused(client, prefix) == []
    assert client.llen(f"broker:{prefix}celery") == client.hlen(f"broker:{prefix}unacked") == 0


def test_the_typescript_bus_hears_events_of_python(
    publish: Publish, bus: EventBus, processes: Processes, prefix: str
) -> None:
    """A TypeScript handler receives every field of events from EventBus, and no events of other TypeScript buses."""
    heard = start_listener(processes, prefix, "dream.*", 3)
    publish("dream.created", 2)  # has the source that TypeScript ignores
    sent = [
        bus.publish("dream.created", DREAM).event,
        bus.publish(
            Event.from_dict(
                {
                    "id": "chosen-1",
                    "type": "dream.image.rendered",
                    "payload": [DREAM],
                    "timestamp": 1_700_000_000_123,
                    "source": "painter",
                    "metadata": {"tenant": "ä"},
                    "correlationId": "chain-1",
                    "schemaVersion": 3,
                }
            )
        ).event,
    ]
    bus.publish("Security.ThreatDetected", None)  # matches no handler there
    sent.append(sent[0].child("dream.summarised", "last"))
    bus.publish(sent[-1])
    sources = [bus.settings.source, "painter", bus.settings.source]
    assert heard() == [event.to_dict() | {"source": source} for event, source in zip(sent, sources, strict=True)]


def test_the_typescript_bus_hears_publish_event(processes: Processes, prefix: str) -> None:
    """A TypeScript handler receives what a program of a Celery application published with publish_event()."""
    heard = start_listener(processes, prefix, "Security.*", 1)
    code = (
        "import tests.app, bridge, json; "
        f"sent = bridge.publish_event('Security.ThreatDetected', {DREAM!r}, correlation_id='chain-1', level=9); "
        "print(json.dumps(sent.event.to_dict()))"
    )
    publisher = processes.start(sys.executable, "-c", code, name="publisher")
    assert publisher.wait(20) == 0, processes.log("publisher")
    (event,) = heard()
    assert event == json.loads(processes.log("publisher").splitlines()[-1])
    assert event["source"] == "tests"
    assert (event["payload"], event["correlationId"], event["level"]) == (DREAM, "chain-1", 9)


def test_handlers_get_the_real_source(
    bus: EventBus, processes: Processes, client: Redis, prefix: str, tmp_path: Path
) -> None:
    """The source in the key reaches journal, Celery handler and local handler, although the broadcast hides it."""
    (tmp_path / "source_app.py").write_text(SOURCE_APP)
    processes.celery("worker", "-n", "w1@test", "-c", "1", name="w1", app="source_app", PYTHONPATH=str(tmp_path))
    eventually(lambda: subscribers(client, prefix) == 1, "the worker is subscribed")
    local: list[Event] = []
    bus.subscribe("dream.*", local.append)

    keys = Keys(prefix)
    event = Event(type="dream.created", payload=DREAM, source="dream-service")
    client.set(keys.event(event.id), event.encode(), ex=86_400)
    client.publish(keys.channel(event.type), as_typescript_broadcasts(event).encode())

    counted = effects(client, prefix, 3)
    eventually(lambda: local, "the local handler has run")
    ((_, entry),) = client.xrange(keys.journal)
    assert counted() == expected([event.id]) + Counter(["source dream-service"])
    assert Event.decode(entry[b"event"], max_bytes=10_000) == event
    assert local == [event]


def test_local_handlers_hear_the_typescript_bus(publish: Publish, bus: EventBus) -> None:
    """A local handler of EventBus receives each matching event of the TypeScript bus once and completely."""
    heard: list[Event] = []
    bus.subscribe("dream.*", heard.append)
    publish("Security.ThreatDetected", 10)
    ids = publish("dream.created", 300, duplicates=50)
    (last,) = publish("dream.last", 1)
    # One connection receives all messages in order, so everything before the last message has been received.
    eventually(lambda: heard and heard[-1].id == last, "the last event is received")
    assert Counter(event.id for event in heard) == Counter([*ids, last])
    for number, event in enumerate(sorted(heard[:-1], key=lambda event: event.payload["dreamId"])):
        fields = event.to_dict()
        assert fields["payload"] == {"dreamId": number, "text": f"Traum {number} – 夢 🌙"}
        assert fields["schemaVersion"] == 3
        assert fields["correlationId"]
        assert fields.get("source") in {"dream-service", None}  # key and broadcast are written in any order
        assert bus.get_event(event.id).source == "dream-service"


@stops_worker
def test_events_from_before_the_first_subscriber_are_dispatched(
    publish: Publish, processes: Processes, client: Redis, prefix: str
) -> None:
    """Events that the TypeScript bus published before the first subscriber are found in their keys and dispatched."""
    ids = publish("dream.created", 300, duplicates=50)
    assert not client.exists(Keys(prefix).journal)
    workers = [processes.worker("w1"), processes.worker("w2")]
    counted = effects(client, prefix, 600)
    eventually(lambda: subscribers(client, prefix) == 2, "both workers are subscribed")
    end_gently(workers)
    assert counted() == expected(ids)
    assert refused(client, prefix) == []
    sources = {
        Event.decode(entry[b"event"], max_bytes=10_000).source for _, entry in client.xrange(Keys(prefix).journal)
    }
    assert sources == {"dream-service"}

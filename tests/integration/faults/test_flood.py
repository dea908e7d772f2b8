"""A flood of hostile messages: honest events are dispatched, memory use is bounded, and the log stays readable."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from redis import Redis

from benchmarks.flood import hostile
from bridge import BridgeSettings, Event
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.processes import Processes
from tests.support.queues import Queues
from tests.support.waiting import eventually

COUNT, HONEST, MOST_LETTERS = 6000, 200, 500
#: Far below the memory that all messages would need: the messages of the flood have 9 MB, and a dead letter 1 kB.
RSS_MB, REDIS_MB = 60, 8


@contextmanager
def flood(url: str, prefix: str) -> Iterator[None]:
    """Broadcast hostile messages during the block, all different, at the maximum rate of one connection."""

    def attack() -> None:
        with Redis.from_url(url) as client:
            for start in range(0, COUNT, 50):
                with client.pipeline(transaction=False) as pipe:
                    for event_type, data in map(hostile, range(start, start + 50)):
                        pipe.publish(prefix + event_type, data)
                    pipe.execute()

    attacker = threading.Thread(target=attack, daemon=True)
    attacker.start()
    yield
    attacker.join(30)
    assert not attacker.is_alive()


def used_mb(client: Redis) -> float:
    return float(client.info("memory")["used_memory"]) / 1e6


def test_a_flood_of_hostile_messages(own_server: RedisServer, processes: Processes, prefix: str) -> None:
    """Honest events are dispatched once, dead letters are limited, memory hardly grows, and few lines are logged."""
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="tests")
    keys = Keys(prefix)
    environment = {"REDIS_URL": own_server.url, "BRIDGE_MAX_DEAD_LETTERS": str(MOST_LETTERS)}
    process = psutil.Process(processes.celery("bus", "subscribe", name="subscriber", **environment).pid)
    with Redis.from_url(own_server.url) as client:
        eventually(lambda: client.exists(keys.journal) and client.pubsub_numpat(), "it is subscribed")
        rss_mb, redis_mb = process.memory_info().rss / 1e6, used_mb(client)
        with flood(own_server.url, prefix):
            for number in range(HONEST):
                event = Event(type="dream.created", id=f"honest{number}", source="shop")
                client.set(keys.event(event.id), event.encode(), ex=3600)
                client.publish(f"{prefix}{event.type}", event.encode())
        refused = len(set(map(hostile, range(COUNT)))) - 1  # the first message with a given id is a valid event
        assert refused > COUNT * 0.9
        written = (keys.dead_size("tests"), "written")
        eventually(lambda: int(client.hget(*written) or 0) >= refused, "all hostile messages are rejected", 30)
        assert int(client.hget(*written)) == refused
        queues = Queues(client, prefix)
        eventually(lambda: queues.length() == 2 * HONEST, "the honest events are dispatched")
        assert set(queues.tasks().values()) == {1}
        assert Storage(client, settings).dead_letters.size().count == client.xlen(keys.dead("tests")) == MOST_LETTERS
        marks = list(client.scan_iter(keys.dead_letter_dedup("tests", "*").replace("{", "[{]"), count=1000))
        assert len(marks) == refused
        assert all(client.pttl(mark) <= 60_000 for mark in marks[:100])
        assert process.memory_info().rss / 1e6 < rss_mb + RSS_MB
        assert used_mb(client) < redis_mb + REDIS_MB
    lines = Counter(re.findall(r"is a dead letter now \((\w+)\)", processes.log("subscriber")))
    assert {"json", "id_conflict", "size", "channel_mismatch", "hop_limit"} <= lines.keys()
    assert set(lines.values()) == {1}

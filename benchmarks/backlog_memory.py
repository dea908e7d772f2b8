"""Memory of a subscriber that works off a large backlog: ``python benchmarks/backlog_memory.py [EVENTS]``.

Fills the journal of a private Redis with events while nobody subscribes, then starts ``celery bus subscribe`` with
``max_queue_length`` and no worker, then takes the messages out of the queue, and prints the resident memory of the
subscriber on the way: while dispatch waits for room, and while a million events pass through it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from redis import Redis

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bridge import Event, EventBus  # noqa: E402
from bridge.devserver import RedisServer  # noqa: E402
from bridge.keys import Keys  # noqa: E402

PREFIX = "backlog:"
QUEUE = f"broker:{PREFIX}celery"  # tests/app.py puts its queues below this name
MAX_QUEUE_LENGTH = 10_000
PAYLOAD = {"dreamId": 1, "text": "x" * 200}


def fill(url: str, events: int) -> None:
    with EventBus(redis_url=url, channel_prefix=PREFIX) as bus:
        for start in range(0, events, 1000):
            numbers = range(start, min(start + 1000, events))
            bus.publish_many([Event(type="repeatable.created", id=f"n{number}", payload=PAYLOAD) for number in numbers])


def undispatched(client: Redis) -> int:
    groups = client.xinfo_groups(Keys(PREFIX).journal)
    return sum(int(group["lag"] or 0) + int(group["pending"]) for group in groups)


def main(events: int) -> None:
    with RedisServer() as server, Redis.from_url(server.url) as client:
        started = time.monotonic()
        fill(server.url, events)
        size = len(Event(type="a", payload=PAYLOAD).encode())
        print(f"{events:,} events of {size} bytes published in {time.monotonic() - started:.0f} s\n")
        print("| undispatched | in the queue | RSS of the subscriber, MB |\n|---|---|---|")
        environment = {
            "REDIS_URL": server.url,
            "BRIDGE_CHANNEL_PREFIX": PREFIX,
            "BRIDGE_MAX_QUEUE_LENGTH": str(MAX_QUEUE_LENGTH),
            "BRIDGE_BLOCK_MS": "50",
        }
        command = [sys.executable, "-m", "celery", "-A", "tests.app", "bus", "subscribe", "-l", "ERROR"]
        with subprocess.Popen(command, cwd=ROOT, env=os.environ | environment) as process:
            try:
                watch(client, psutil.Process(process.pid), events)
            finally:
                process.terminate()


def watch(client: Redis, process: psutil.Process, events: int) -> None:
    while client.llen(QUEUE) < min(MAX_QUEUE_LENGTH, events):
        time.sleep(0.1)
    time.sleep(10)  # it waits for room
    marks = [events * tenth // 10 for tenth in range(10, -1, -1)]
    while marks:
        left = undispatched(client)
        if left <= marks[0]:
            print(f"| {left:,} | {client.llen(QUEUE):,} | {process.memory_info().rss / 1e6:.0f} |", flush=True)
            marks.pop(0)
        client.rpop(QUEUE, 5_000)
        time.sleep(0.05)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)

"""A program that publishes until SIGTERM and logs what was accepted: ``publisher.py NAME SEED LOG``.

A line of the log is ``<began> <ended> <type> <id>``: the times of the first attempt and of the reply. It is written
after the event was accepted. Most events are published with the bridge, some like an external publisher does, with SET
and PUBLISH over two connections. A refused event is published again with the same id until it is accepted.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from bridge import BusUnavailable, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage

#: The share of each event type.
WEIGHTS = {
    "chaos.bare": 48,
    "chaos.guarded": 20,
    "chaos.transactional": 18,
    "chaos.considered": 4,
    "chaos.chained": 6,
    "chaos.retrying": 2,
    "chaos.failing": 1,
    "chaos.slow": 1,
}
#: Publishers wait while more tasks and events than this are unfinished: faults should hit a busy site, not a growing
#: queue.
MAX_BACKLOG = int(os.environ.get("CHAOS_MAX_BACKLOG", "3000"))
_BATCH = 100
#: The share of batches that are published like an external publisher does.
_FOREIGN = 0.1

Publish = Callable[[EventBus, list[Event]], None]


def main(name: str, seed: int, log: Path) -> None:
    stop = threading.Event()
    # In a thread: a signal handler may interrupt the start of stop.wait(), which holds the lock that stop.set() needs.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=lambda: (signal.sigwait([signal.SIGTERM]), stop.set()), daemon=True).start()
    choice = random.Random(seed)
    number = 0
    # Unbuffered, so that a line is either in the file or not, even if this process is killed.
    with EventBus(source=name) as bus, log.open("ab", buffering=0) as accepted:
        while not stop.wait(0.01):
            if waiting_for_groups(bus) or backlog(bus) > MAX_BACKLOG:
                stop.wait(0.1)
                continue
            kinds = choice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=_BATCH)
            # The id contains the process id, because a publisher that was killed does not know its last number.
            events = [Event(type=kind, id=f"{name}-{os.getpid()}-{number + index}") for index, kind in enumerate(kinds)]
            number += _BATCH
            publish: Publish = shout if choice.random() < _FOREIGN else EventBus.publish_many
            began = time.time()
            if until_accepted(publish, bus, events, stop):
                moments = f"{began:.3f} {time.time():.3f}"
                accepted.write("".join(f"{moments} {event.type} {event.id}\n" for event in events).encode())


def waiting_for_groups(bus: EventBus) -> bool:
    """Return whether groups have yet to be created whose backlog will count, as many as CHAOS_GROUPS names."""
    try:
        return len(Storage(bus.client, bus.settings).journal.groups()) < int(os.environ.get("CHAOS_GROUPS", "0"))
    except (RedisError, OSError):
        return False


def backlog(bus: EventBus) -> int:
    """Return the number of unfinished events and tasks; 0 if the bus does not reply, so that load continues."""
    keys = Keys(bus.settings.channel_prefix)
    try:
        groups = bus.client.xinfo_groups(keys.journal)
        names = [group["name"].decode() for group in groups]
        in_flight = sum(int(bus.client.zcard(keys.inflight(name))) for name in names)
        return in_flight + sum(int(group["lag"] or 0) for group in groups)
    except (RedisError, OSError):
        return 0


def until_accepted(publish: Publish, bus: EventBus, events: list[Event], stop: threading.Event) -> bool:
    """Publish until it succeeds; return False if stopped before that, when some events may have been accepted."""
    while True:
        try:
            publish(bus, events)
        except (BusUnavailable, RedisError, OSError):
            if stop.wait(0.1):
                return False
        else:
            return True


def shout(bus: EventBus, events: list[Event]) -> None:
    """Publish like an external publisher: one connection for the keys, another one for the channels."""
    keys = Keys(bus.settings.channel_prefix)
    with bus.client.pipeline(transaction=False) as pipe:
        for event in events:
            pipe.set(keys.event(event.id), event.encode(), ex=3600)
        pipe.execute()
    with Redis.from_url(os.environ["BRIDGE_REDIS_URL"], socket_timeout=5) as other:
        for event in events:
            other.publish(keys.channel(event.type), event.encode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

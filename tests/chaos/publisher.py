"""A program that publishes until SIGTERM, and keeps a log of what was accepted: ``publisher.py NAME SEED LOG``.

A line of the log is ``<began> <ended> <type> <id>``, written after the event was accepted; the moments are those of
the first try and of the answer. Most events go through the bridge's own bus; some as foreign programs do it, with SET
and PUBLISH on two connections. What is refused is tried again under the same id until it is accepted.
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
from tests.chaos.app import GROUP

#: Type to its share of the events.
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
#: Tasks and events under way beyond which publishers wait: the faults are to meet a busy site, not a growing queue.
MAX_BACKLOG = 3000
_BATCH = 100
#: Share of the batches that are published as foreign programs do.
_FOREIGN = 0.1

Publish = Callable[[EventBus, list[Event]], None]


def main(name: str, seed: int, log: Path) -> None:
    stop = threading.Event()
    # By a thread: a handler may interrupt the beginning of stop.wait(), whose lock stop.set() would wait for.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=lambda: (signal.sigwait([signal.SIGTERM]), stop.set()), daemon=True).start()
    choice = random.Random(seed)
    number = 0
    # Unbuffered: a line is in the file or not, whenever this process is killed.
    with EventBus(source=name) as bus, log.open("ab", buffering=0) as accepted:
        while not stop.wait(0.01):
            if backlog(bus) > MAX_BACKLOG:
                stop.wait(0.1)
                continue
            kinds = choice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=_BATCH)
            # With the process id: one that was killed does not know how far it had come.
            events = [Event(type=kind, id=f"{name}-{os.getpid()}-{number + index}") for index, kind in enumerate(kinds)]
            number += _BATCH
            publish: Publish = shout if choice.random() < _FOREIGN else EventBus.publish_many
            began = time.time()
            if until_accepted(publish, bus, events, stop):
                moments = f"{began:.3f} {time.time():.3f}"
                accepted.write("".join(f"{moments} {event.type} {event.id}\n" for event in events).encode())


def backlog(bus: EventBus) -> int:
    """Return how many events and tasks are under way; a bus that does not answer is met with load, too."""
    keys = Keys(bus.settings.channel_prefix)
    try:
        groups = bus.client.xinfo_groups(keys.journal)
        return int(bus.client.zcard(keys.inflight(GROUP))) + sum(int(group["lag"] or 0) for group in groups)
    except (RedisError, OSError):
        return 0


def until_accepted(publish: Publish, bus: EventBus, events: list[Event], stop: threading.Event) -> bool:
    """Publish until it succeeds; False when told to stop before, and then some may have been accepted."""
    while True:
        try:
            publish(bus, events)
        except (BusUnavailable, RedisError, OSError):
            if stop.wait(0.1):
                return False
        else:
            return True


def shout(bus: EventBus, events: list[Event]) -> None:
    """Publish as a foreign program: one connection for the keys, another for the channels."""
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

"""Under a steady load, the bridge needs a steady amount of memory in Redis: no key grows, and none is left."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from threading import Event as Flag

from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.errors import BridgeError
from bridge.storage.in_flight import InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ledger
from bridge.storage.storage import Storage
from tests.support.ledgers import end
from tests.support.replays import Replays, last
from tests.support.site import Site
from tests.support.waiting import eventually

#: Everything is forgotten after a few seconds, except for the marks of dead letters.
SHORT = {
    "BRIDGE_EVENT_TTL_S": "1",
    "BRIDGE_DEDUP_TTL_S": "2",
    "BRIDGE_REDISPATCH_AFTER_S": "1",
    "BRIDGE_MAX_DEAD_LETTERS": "20",
    "BRIDGE_MAX_EVENTS_PER_S_PER_SOURCE": "1000",
}
#: The marks of dead letters live for this time, whatever the settings are.
_LETTER_MARK_MS = 300_000
#: Types of which each step has one event: with retries, with a dead letter after them, with a dead letter.
_RARE = ("bound.created", "retry.created", "failing.created")
#: Pause between two steps, and the most tasks in flight before one: a slow machine has the same load, later.
_PACE_S, _MAX_IN_FLIGHT = 0.1, 30
#: New queues in each step, and characters of their names, which make a leak visible.
_QUEUES, _NAME = 4, 300
#: The load before each of two windows in which sizes are compared, and in a window: steps, whose traces a leak keeps,
#: and least seconds, in which everything that may be forgotten is forgotten.
_BEFORE, _WINDOW = (25, 3.5), (8, 1.0)
#: What may be more in the second window without being a leak: keys of a kind, and bytes.
_SLACK = {"keys": 30, "bytes": 20_000}


class Load:
    """Every way in which keys come to be: each step has the same number of events of each kind."""

    def __init__(self, bus: EventBus, client: Redis, replays: Replays, ledger: Ledger) -> None:
        self._bus = bus
        self._ledger = ledger
        self._client = client
        self._keys = replays.keys
        self._replays = replays
        self._never = Flag()
        self._due_at = 0.0
        #: Steps so far, and the least seconds from one to the next.
        self.steps, self.pace_s = 0, _PACE_S

    def step(self) -> None:
        in_flight = self._keys.inflight("tests")
        eventually(lambda: self._client.zcard(in_flight) < _MAX_IN_FLIGHT, "the worker keeps up")
        self._never.wait(max(_PACE_S, self._due_at - time.monotonic()))
        self._due_at = time.monotonic() + self.pace_s
        number, self.steps = self.steps, self.steps + 1
        for kind in ("dream.created", _RARE[number % len(_RARE)]):
            self._bus.publish(Event(type=kind, id=f"{kind}-{number}", correlation_id="tenant"))
        self._bus.publish(Event(type="bound.created", id=f"dream.created-{number}"))  # a conflict
        self._bus.publish_many([Event(type="nobody.wants", correlation_id="tenant") for _ in range(60)])
        other = Event(
            type="dream.created", id=f"other-{number}", source=f"source {number % 3}", correlation_id="tenant"
        )
        with self._client.pipeline(transaction=False) as pipe:
            pipe.set(self._keys.event(other.id), other.encode(), ex=1)
            pipe.publish(self._keys.channel(other.type), other.encode())
            pipe.publish(self._keys.channel("dream.created"), f"broken {number}")
            old = Event(type="dream.created", id=f"old-{number}", timestamp=1).encode()
            pipe.set(self._keys.event(f"old-{number}"), old, px=3000)
            pipe.execute()
        self._use_queues(f"tenant-{number}")
        if number % 5 == 0:
            self._cut()
            last(self._replays.journal(f"journal-{number}", ids=frozenset({f"dream.created-{number}"})).run(1e9))
            with suppress(BridgeError):  # there may be no dead letter yet
                last(self._replays.dead(f"dead-{number}").run(1e9))

    def _use_queues(self, tenant: str) -> None:
        """Run tasks through queues that are never used again."""
        for number in range(_QUEUES):
            name = f"{tenant}-{number}-{'x' * _NAME}"
            self._ledger.acknowledge_sent([], [InFlightTask("t.all", name, "1-1", queue=name).entry(name)])
            self._ledger.start_run(name, "token", idempotent=True)
            end(self._ledger, name)

    def _cut(self) -> None:
        """Cut the subscription of the bridge: the event keys are scanned."""
        for client in self._client.client_list(_type="pubsub"):
            if client["name"].startswith("bridge:tests:"):
                self._client.client_kill_filter(_id=client["id"])

    def run(self, steps: int, seconds: float) -> Iterator[None]:
        """Do at least so many steps, for at least so long."""
        until = time.monotonic() + seconds
        for number in count(1):
            self.step()
            yield
            if number >= steps and time.monotonic() > until:
                return


Sizes = Counter[tuple[str, str]]


def sizes(client: Redis, prefix: str) -> Sizes:
    """Return how many keys of each kind the bridge has, and their bytes. Effects and the broker are not its own."""
    found: Sizes = Counter()
    for pattern in (f"{{{prefix}}}*", f"{prefix}event:*"):
        names = list(client.scan_iter(pattern, count=1000))
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.memory_usage(name, samples=0)
            held = pipe.execute()
        for name, size in zip(names, held, strict=True):
            kind = re.sub(r":.*", "", name.decode().replace("{", "").replace("}", "").removeprefix(prefix))
            found[kind, "keys"] += 1
            found[kind, "bytes"] += size or 0
    return found


def largest(client: Redis, prefix: str, load: Load) -> Sizes:
    """Return the largest sizes within some time, after some time under load."""
    for _ in load.run(*_BEFORE):
        pass
    found: Sizes = Counter()
    for _ in load.run(*_WINDOW):
        found |= sizes(client, prefix)
    return found


def test_under_a_steady_load_no_key_grows(site: Site, client: Redis, settings: BridgeSettings) -> None:
    """Retries, failures, conflicts, gaps, replays and ids that are used all the time leave nothing behind."""
    short = settings.model_copy(update={"event_ttl_s": 1, "dedup_ttl_s": 2})
    site.worker("w1", **SHORT)
    with EventBus(short) as bus:
        eventually(lambda: bus.publish("dream.created") and site.effects(), "the worker runs tasks", 40)
        load = Load(bus, client, Replays(client, short), Storage(client, short).ledger)
        began_at = time.monotonic()
        before = largest(client, site.prefix, load)
        # Most keys live for seconds, so there are more of them while the machine is faster.
        load.pace_s = (time.monotonic() - began_at) / load.steps
        after = largest(client, site.prefix, load)
    grown = {one: (before[one], size) for one, size in after.items() if size > 1.5 * before[one] + _SLACK[one[1]]}
    assert {kind for kind, _ in grown} <= {"parked"}, grown
    kinds = {kind for kind, _ in before | after}
    assert {"journal", "seen", "done", "caused", "event", "dead", "replay", "replays", "skipped", "rate"} <= kinds
    assert "inflight-lanes" in kinds
    marks = [client.pttl(key) for key in client.scan_iter(f"{{{site.prefix}}}parked:*", count=1000)]
    assert max(marks) <= _LETTER_MARK_MS
    keys = Keys(site.prefix)
    of_group = (keys.dead, keys.dead_size, keys.fencing_token, keys.inflight, keys.inflight_tasks)
    of_group += (keys.queue_watermarks, keys.starts)
    lasting = {key.decode() for key in client.scan_iter(f"{{{site.prefix}}}*", count=1000) if client.pttl(key) == -1}
    assert lasting <= {keys.journal, keys.journal_start, keys.group_settings, *(of("tests") for of in of_group)}

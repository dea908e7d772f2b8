"""Status of the consumer groups of a bus: backlog, subscribers, failures. For operators and monitors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bridge.storage.entries import stream_position
from bridge.storage.lua import script
from bridge.storage.presence import Presence, read_presences
from bridge.storage.queue_sample import QueueStatus, read_sample, shown_queues
from bridge.storage.storage import Storage
from bridge.telemetry import Delays

#: Most entries that are counted where Redis does not know how many are undelivered: it loads each, whatever its size.
_MAX_COUNTED = 100


@dataclass(frozen=True)
class GroupStatus:
    """One consumer group.

    Arguments:
        name: Its name: one Celery application.
        backlog: Journal entries that are not dispatched yet, including those that consumers hold.
        exact: Whether the backlog is exact; otherwise it is longer.
        oldest_s: Age of its oldest entry; None when it is empty.
        pending: Consumer to the number of entries that it holds.
        last_ms: When the newest entry that a consumer has read was appended, ms since the epoch; 0: none was read.
        in_flight, overdue: Tasks that were sent and have not ended; those among them that should have ended.
        dead_letters: How many are kept.
        dead_letters_written, dead_letters_evicted: How many were ever written, and evicted.
        starts: How long after their events the first runs of tasks started.
        subscribers: Those that are running, or died recently.
        queues: The queues of its tasks, by name; None if no subscriber has measured them lately.
    """

    name: str
    backlog: int
    exact: bool
    oldest_s: float | None
    pending: dict[str, int]
    last_ms: int
    in_flight: int
    overdue: int
    dead_letters: int
    dead_letters_written: int
    dead_letters_evicted: int
    starts: Delays
    subscribers: tuple[Presence, ...]
    queues: tuple[QueueStatus, ...] | None

    @property
    def alive(self) -> int:
        """How many subscribers are running."""
        return sum(subscriber.alive for subscriber in self.subscribers)

    @property
    def dispatched_per_s(self) -> float:
        """Task messages per second, over about ten seconds."""
        return sum(subscriber.dispatched_per_s for subscriber in self.subscribers if subscriber.alive)


@dataclass(frozen=True)
class BusStatus:
    """One bus.

    Arguments:
        at_ms: When it was read, by the clock of the server, ms since the epoch.
        entries: How many the journal holds.
        first_ms, last_ms: When the oldest and the newest of them were appended; 0 when the journal is empty.
        groups: By name.
    """

    at_ms: int
    entries: int
    first_ms: int
    last_ms: int
    groups: tuple[GroupStatus, ...]

    def group(self, name: str) -> GroupStatus | None:
        """Return the group of this name; None when it does not exist."""
        return next((group for group in self.groups if group.name == name), None)


def read_status(storage: Storage) -> BusStatus:
    """Read the status of all groups of a bus; two round trips, whatever the journal holds.

    Raises:
        RedisError: Redis does not answer.
    """
    client, keys = storage.client, storage.keys
    reply: Any = script(client, "backlog")(keys=[keys.journal], args=[_MAX_COUNTED])
    now_ms, entries, first, last, *rows = reply
    with client.pipeline(transaction=False) as pipe:
        for name, *_ in rows:
            group = name.decode()
            pipe.xinfo_consumers(keys.journal, group)
            pipe.zcard(keys.inflight(group))
            pipe.zcount(keys.inflight(group), "-inf", now_ms)
            pipe.xlen(keys.dead(group))
            pipe.hmget(keys.dead_size(group), ["written", "dropped"])
            pipe.hgetall(keys.starts(group))
            pipe.hgetall(keys.subscribers(group))
            pipe.get(keys.queue_sample(group))
        replies = iter(pipe.execute())
    groups = sorted((_group(row, replies, int(now_ms)) for row in rows), key=lambda group: group.name)
    return BusStatus(int(now_ms), entries, _ms(first), _ms(last), tuple(groups))


def _group(row: Sequence[Any], replies: Iterator[Any], now_ms: int) -> GroupStatus:
    name, last, pending, undelivered, exact, oldest = row
    consumers, in_flight, overdue, dead_letters, (written, dropped), starts, subscribers, sample = islice(replies, 8)
    return GroupStatus(
        name=name.decode(),
        backlog=undelivered + pending,
        exact=bool(exact),
        oldest_s=max(0, now_ms - _ms(oldest)) / 1000 if oldest else None,
        pending={consumer["name"].decode(): consumer["pending"] for consumer in consumers},
        last_ms=_ms(last),
        in_flight=in_flight,
        overdue=overdue,
        dead_letters=dead_letters,
        dead_letters_written=int(written or 0),
        dead_letters_evicted=int(dropped or 0),
        starts=_delays(starts),
        subscribers=tuple(one for one in read_presences(subscribers, now_ms) if not one.stopped),
        queues=shown_queues(read_sample(sample), now_ms),
    )


def _delays(stored: dict[bytes, bytes]) -> Delays:
    counts = {int(name): int(value) for name, value in stored.items() if name != b"ms"}
    return Delays(counts, int(stored.get(b"ms", 0)))


def _ms(entry_id: bytes) -> int:
    return stream_position(entry_id.decode())[0]

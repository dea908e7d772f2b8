"""How the groups of a bus get on: what waits, who works, what went wrong. For people and for monitors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bridge.storage.entries import stream_position
from bridge.storage.lua import script
from bridge.storage.presence import Presence, read_presences
from bridge.storage.storage import Storage
from bridge.telemetry import Delays

#: Entries counted at most where Redis does not know how many are undelivered; it looks at each, whatever its size.
_MAX_COUNTED = 100


@dataclass(frozen=True)
class GroupStatus:
    """One consumer group.

    Arguments:
        name: Of the group, one Celery application.
        backlog: Journal entries that it has yet to dispatch, those that consumers hold included.
        exact: Whether that is all; otherwise there are more.
        oldest_s: Age of the oldest of them; None when there is none.
        pending: Consumer to how many entries it holds.
        last_ms: When the journal took the newest entry that a consumer has had, ms since the epoch; 0: none had any.
        in_flight, overdue: Tasks that were sent and have not ended; those of them that should have.
        dead_letters: That are kept.
        dead_letters_written, dead_letters_evicted: Ever written; those that made room since.
        starts: How long after their events first runs of tasks began.
        subscribers: That live, or went lately without a word.
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

    @property
    def alive(self) -> int:
        """How many subscribers live."""
        return sum(subscriber.alive for subscriber in self.subscribers)

    @property
    def dispatched_per_s(self) -> float:
        """Task messages a second, over the last ten seconds or so."""
        return sum(subscriber.dispatched_per_s for subscriber in self.subscribers if subscriber.alive)


@dataclass(frozen=True)
class BusStatus:
    """One bus.

    Arguments:
        at_ms: When this was, by the clock of the server, ms since the epoch.
        entries: In the journal.
        first_ms, last_ms: When the journal took the oldest and the newest of them; 0 when there is none.
        groups: By name.
    """

    at_ms: int
    entries: int
    first_ms: int
    last_ms: int
    groups: tuple[GroupStatus, ...]

    def group(self, name: str) -> GroupStatus | None:
        """Return the group of that name; None when the journal has none."""
        return next((group for group in self.groups if group.name == name), None)


def read_status(storage: Storage) -> BusStatus:
    """Ask Redis how the groups of a bus get on; two round trips, whatever the journal holds.

    Raises:
        RedisError: It does not answer.
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
        answers = iter(pipe.execute())
    groups = sorted((_group(row, answers, int(now_ms)) for row in rows), key=lambda group: group.name)
    return BusStatus(int(now_ms), entries, _ms(first), _ms(last), tuple(groups))


def _group(row: Sequence[Any], answers: Iterator[Any], now_ms: int) -> GroupStatus:
    name, last, pending, undelivered, exact, oldest = row
    consumers, in_flight, overdue, letters, (written, dropped), starts, subscribers = islice(answers, 7)
    return GroupStatus(
        name=name.decode(),
        backlog=undelivered + pending,
        exact=bool(exact),
        oldest_s=max(0, now_ms - _ms(oldest)) / 1000 if oldest else None,
        pending={consumer["name"].decode(): consumer["pending"] for consumer in consumers},
        last_ms=_ms(last),
        in_flight=in_flight,
        overdue=overdue,
        dead_letters=letters,
        dead_letters_written=int(written or 0),
        dead_letters_evicted=int(dropped or 0),
        starts=_delays(starts),
        subscribers=tuple(read_presences(subscribers, now_ms)),
    )


def _delays(stored: dict[bytes, bytes]) -> Delays:
    counts = {int(name): int(value) for name, value in stored.items() if name != b"ms"}
    return Delays(counts, int(stored.get(b"ms", 0)))


def _ms(entry_id: bytes) -> int:
    return stream_position(entry_id.decode())[0]

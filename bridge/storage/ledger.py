"""The in-flight ledger: every task that was sent and has not ended, so that one whose message is lost is sent again.

A broker can lose a message: Redis hands it to a worker with one command and notes that with a second. So a task
stays listed from the moment its journal entry is acknowledged until it ends. Beside the list are the marks that make
a repetition harmless: ``done``, the task has ended, and ``lease``, it runs now.

Times are those of the Redis server. The methods raise redis-py's errors as they come; all are safe to repeat.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from redis import Redis
from redis.client import Pipeline

from bridge.config import BridgeSettings
from bridge.storage.keys import Keys
from bridge.storage.lua import script
from bridge.storage.server_time import server_ms

StartResult = Literal["begun", "ended", "running", "poisoned"]
_OUTCOMES: dict[int, StartResult] = {1: "begun", 0: "ended", -1: "running", -2: "poisoned"}


class InFlightTask(NamedTuple):
    """An event and a handler: one task that was sent.

    Arguments:
        handler: Name of the Celery task.
        event_id: Of its event.
        entry_id: Of the journal entry that holds the event.
        queue: Where the message went; empty when Celery's router decides as it sends.
        priority: Of the message; messages of one queue and priority are worked off in order.
        delay_ms: How long the message holds the task back (``countdown``).
        redispatches: How often the message was sent again.
        retried: Whether the task has begun and comes again: out of the order of its queue.
    """

    handler: str
    event_id: str
    entry_id: str
    queue: str = ""
    priority: int = 0
    delay_ms: int = 0
    redispatches: int = 0
    retried: bool = False

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(self._asdict()).encode()

    def listed(self, task_id: str) -> LedgerEntry:
        """Return the task of this id with this pair, to be listed."""
        return LedgerEntry(task_id, self.encode(), self.delay_ms)


class Ended(NamedTuple):
    """What the done mark of a task tells of its end.

    Arguments:
        letter_id: Its dead letter; empty when it went well.
        runtime_ms: How long its last run took; -1 when that is unknown.
        queue: Where its message came from; empty when that is unknown.
    """

    letter_id: str = ""
    runtime_ms: int = -1
    queue: str = ""

    def encode(self) -> str:
        """Return it as text, without the letter."""
        return f"{self.runtime_ms} {self.queue}"

    @classmethod
    def read(cls, mark: bytes) -> Ended:
        """Return what a done mark says: ``<letter or -> <runtime_ms> <queue>``."""
        try:
            letter_id, runtime_ms, queue = mark.decode().split(" ", 2)
            return cls(letter_id.removeprefix("-"), int(runtime_ms), queue)
        except ValueError:
            return cls()  # of another version


class LedgerEntry(NamedTuple):
    """A task and what is kept of it: its :class:`Pair`, encoded."""

    task_id: str
    pair: bytes
    delay_ms: int


class TaskStatus(NamedTuple):
    """What the ledger knows of a task: how it *ended*, whether it is *running*, and its pair until it ends."""

    ended: Ended | None
    running: bool
    pair: InFlightTask | None


@dataclass(frozen=True)
class Overdue:
    """A task that has not ended in time.

    Arguments:
        passed: A task sent later by more than ``lease_s`` through its queue has begun, so it waits there no more.
    """

    task_id: str
    pair: InFlightTask
    left_queue: bool


@dataclass(frozen=True)
class Begun:
    """Answer to :meth:`Ledger.begin`.

    ``begun``: run it. ``ended``: it has had its effect. ``running``: another copy runs, for *left_ms* at least.
    ``poisoned``: its worker died *deaths* times, more often than allowed.
    """

    outcome: StartResult
    left_ms: int = 0
    deaths: int = 0


class Ledger:
    """The ledger of one group, and the marks of its tasks.

    Arguments:
        client: Connected to the bus.
        settings: Group and the times of the ledger.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, settings: BridgeSettings, keys: Keys) -> None:
        self._client = client
        self._settings = settings
        self._keys = keys
        self._inflight = keys.inflight(settings.group)
        self._pairs = keys.inflight_pairs(settings.group)
        self._lanes = keys.queue_watermarks(settings.group)
        self._starts = keys.starts(settings.group)
        self._redispatch_ms = int(settings.redispatch_after_s * 1000)
        self._lease_ms = int(settings.lease_s * 1000)
        self._scripts = {
            name: script(client, name)
            for name in ("acknowledge_sent", "start_run", "renew", "release", "find_overdue", "sweep_overdue")
        }

    # Sending

    def sent(self, entry_ids: Sequence[bytes], tasks: Sequence[LedgerEntry]) -> None:
        """Acknowledge journal entries and list the tasks that were sent for them, in one step."""
        args: list[Any] = [self._settings.group, self._redispatch_ms, len(entry_ids), *entry_ids]
        for task_id, pair, delay_ms in tasks:
            args += (task_id, delay_ms, pair)
        done = [self._keys.done(task.task_id) for task in tasks]
        self._scripts["acknowledge_sent"](keys=[self._keys.journal, self._inflight, self._pairs, *done], args=args)

    def listing(self, tasks: Iterable[LedgerEntry], now_ms: int) -> list[tuple[Any, ...]]:
        """Return the commands that list tasks as sent, for the transaction that sends them.

        Arguments:
            now_ms: By the clock of the server.
        """
        due_ms = now_ms + self._redispatch_ms
        pairs: list[Any] = []
        scores: list[Any] = []
        for task_id, pair, delay_ms in tasks:
            pairs += (task_id, b"%d %b" % (now_ms, pair))
            scores += (due_ms + delay_ms, task_id)
        return [("HSET", self._pairs, *pairs), ("ZADD", self._inflight, *scores)]

    # A task's run

    def begin(self, task_id: str, token: str, *, idempotent: bool, retries: int = 0) -> Begun:
        """Ask whether a task may run, and note that it does.

        Arguments:
            token: Names this run; the same when the call is repeated after an error.
            idempotent: Whether it must not run when it has ended or runs elsewhere.
            retries: How often it was retried. The run before may not have said yet that it is over.
        """
        keys = [self._keys.done(task_id), self._keys.lease(task_id), self._inflight, self._pairs, self._lanes]
        keys.append(self._starts)
        max_deaths = self._settings.max_redispatches
        args: list[Any] = [task_id, token, self._lease_ms, max_deaths, self._redispatch_ms, int(idempotent), retries]
        code, number = cast("list[int]", self._scripts["start_run"](keys=keys, args=args))
        outcome = _OUTCOMES[code]
        return Begun(outcome, left_ms=number) if outcome == "running" else Begun(outcome, deaths=number)

    def renew(self, task_id: str, token: str) -> bool:
        """Prolong the lease of a run; False when it counted as dead and another has begun."""
        args: list[Any] = [token, self._lease_ms, self._lease_ms + 2 * self._redispatch_ms]
        return bool(self._scripts["renew"](keys=[self._keys.lease(task_id)], args=args))

    def release(self, task_id: str, token: str, delay_ms: int) -> None:
        """Give up the lease of a run whose task comes again in *delay_ms*: a retry."""
        keys = [self._keys.lease(task_id), self._inflight, self._pairs]
        self._scripts["release"](keys=keys, args=[task_id, token, self._redispatch_ms, delay_ms])

    def end(self, task_id: str, ended: Ended, pipe: Pipeline) -> None:
        """Queue on *pipe*, a transaction, that a task has ended: its done mark, and that it leaves the ledger."""
        pipe.set(self._keys.done(task_id), f"- {ended.encode()}", px=self._settings.dedup_ttl_ms)
        pipe.delete(self._keys.lease(task_id))
        pipe.zrem(self._inflight, task_id)
        pipe.hdel(self._pairs, task_id)

    def end_first(self, task_id: str, ended: Ended, pipe: Pipeline, watched: Iterable[str] = ()) -> bool:
        """Begin a transaction on *pipe*, which is empty, with the end of a task; return False if it has ended already.

        EXEC raises ``WatchError``, and changes nothing, if the task ends or a *watched* key changes before it.
        """
        pipe.watch(self._keys.done(task_id), *watched)
        if self._ended(task_id, pipe):
            return False
        pipe.multi()
        self.end(task_id, ended, pipe)
        return True

    def has_ended(self, task_id: str) -> bool:
        """Whether a task has ended."""
        return self._ended(task_id, self._client)

    def _ended(self, task_id: str, client: Redis) -> bool:
        return bool(client.exists(self._keys.done(task_id)))

    # Recovery

    def overdue(self, count: int) -> list[Overdue]:
        """Return up to *count* tasks that should have ended, the longest overdue first."""
        rows: Any = self._scripts["find_overdue"](
            keys=[self._inflight, self._pairs, self._lanes], args=[count, self._lease_ms]
        )
        return [Overdue(task_id.decode(), _pair(text), bool(left_queue)) for task_id, text, left_queue in rows]

    def sweep(self, overdue: Sequence[Overdue], waiting: Collection[str]) -> set[str]:
        """Put off those that run, or wait in their queue, strike those that have ended; return the ids of the others.

        Arguments:
            overdue: Result of :meth:`overdue`.
            waiting: Ids of the tasks among them that seem to wait in their queue. That is believed for half of
                ``event_ttl_s``, while their journal entries are sure to be there; then they are sent once more.
        """
        keys = [self._inflight, self._pairs]
        args: list[Any] = [self._redispatch_ms, max(self._redispatch_ms, self._settings.event_ttl_ms // 2)]
        for task in overdue:
            keys += (self._keys.done(task.task_id), self._keys.lease(task.task_id))
            args += (task.task_id, int(task.task_id in waiting))
        lost = cast("list[bytes]", self._scripts["sweep_overdue"](keys=keys, args=args))
        return {task_id.decode() for task_id in lost}

    # For people who look

    def task_statuses(self, task_ids: Sequence[str]) -> list[TaskStatus]:
        """Tell what is known of tasks, in one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            for task_id in task_ids:
                pipe.get(self._keys.done(task_id))
                pipe.hget(self._keys.lease(task_id), "until_ms")
                pipe.hget(self._pairs, task_id)
            time, *replies = pipe.execute()
        now_ms = server_ms(time)
        return [
            TaskStatus(
                None if mark is None else Ended.read(mark),
                until_ms is not None and int(until_ms) > now_ms,
                None if pair is None else _pair(pair.partition(b" ")[2]),
            )
            for mark, until_ms, pair in zip(replies[::3], replies[1::3], replies[2::3], strict=True)
        ]

    def size(self) -> int:
        """Return how many tasks were sent and have not ended."""
        return self._client.zcard(self._inflight)


def _pair(text: bytes) -> InFlightTask:
    stored = json.loads(text)  # another version may have written it
    return InFlightTask(**{name: stored[name] for name in InFlightTask._fields if name in stored})

"""The in-flight ledger: every task that was sent and has not ended. A task whose message is lost is sent again from it.

A broker can lose a message: Redis gives it to a worker with one command and records that with a second one. So a task
is listed from the step that acknowledges its journal entry until it ends. Two marks make a duplicate of its message
harmless: ``done``, the task has ended, and ``lease``, it is running. A retry is another message than the first try. So
the number of the try that is due is recorded, and the messages of earlier tries do not start: the broker may restore
them at any time, and each of them would send further retries.

::

    in journal ---> sent ---> running ---> ended
                    |  ^      |     ^
                    +--+      v     |
                redispatch   retrying

    sent ---> given up ---> running, if its message arrives after all, or ended, if its dead letter is replayed

==========  ==========================  ===========================================================================
state       in Redis                    what a crash leaves
==========  ==========================  ===========================================================================
in journal  a pending or unread entry   the entry is read again; the task ids are the same
sent        in the ledger               a message that is lost becomes overdue
running     in the ledger, with lease   the lease expires, the task becomes overdue, and the death is counted
retrying    in the ledger, ``retried``  a message that is lost becomes overdue, later by the delay of the retry. It is
                                        sent again with the number of the try that is due, which the ledger and the
                                        lease key have
given up    in the ledger, with the id  a message that arrives starts the task, and its dead letter is withdrawn. The
            of its dead letter          task is forgotten after ``dedup_ttl_s``, when its messages no longer start
ended       done mark                   nothing; the mark expires after ``dedup_ttl_s``
==========  ==========================  ===========================================================================

==================  ===============  ==============================================================================
transition          who              how
==================  ===============  ==============================================================================
in journal -> sent  dispatcher       :meth:`Ledger.list_commands` in the transaction that pushes the messages, or
                                     :meth:`Ledger.acknowledge_sent` once the broker has them
-> running          worker           :meth:`Ledger.start_run`, then :meth:`Ledger.renew`
running -> ended    worker           :meth:`Ledger.end`, or ``DeadLetters.end_task_with`` after a failure
-> retrying         worker           :meth:`Ledger.release`, after the retry was sent. After a crash between the two,
                                     the retry starts nevertheless: it has the token of the run that sent it
redispatch          leader           :meth:`Ledger.find_overdue` and :meth:`Ledger.sweep_overdue`; the others are sent
                                     again and listed with :meth:`Ledger.acknowledge_sent`
-> given up         leader           ``DeadLetters.end_task_with`` without an end: after ``max_redispatches``, or if its
                                     event has expired or will
given up -> running worker           :meth:`Ledger.start_run`, which deletes the dead letter
given up -> ended   operator         ``operations.Replay`` of the dead letter, which has another task
sent -> ended       worker           ``DeadLetters.end_task_with``: after ``max_redispatches`` deaths
==================  ===============  ==============================================================================

A message that merely waits cannot be told from one that is lost: workers hold messages before they start them, and the
queue may be unknown. So no task ends because it has not started.

Each transition is one script or one transaction, and each can be repeated after a lost reply: the token of a run, or
the mark that exists already, identifies the repetition.

Marks expire after ``dedup_ttl_s``. If a message is older, and its task is neither in the ledger nor has a lease key,
the task may have ended. So it does not start: it becomes a dead letter.

Times are those of the Redis server. The methods raise redis-py's errors as they come; all are safe to repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline

from bridge.config import BridgeSettings
from bridge.storage.in_flight import (
    Delivery,
    Ended,
    InFlightTask,
    LedgerEntry,
    Overdue,
    RunStart,
    StartResult,
    TaskStatus,
)
from bridge.storage.keys import Keys
from bridge.storage.lua import script
from bridge.storage.server_time import server_ms

_START_RESULTS: dict[int, StartResult] = {
    1: "started",
    0: "ended",
    -1: "running",
    -2: "poisoned",
    -3: "superseded",
    -4: "stale",
}
#: The message of a task that was sent once, at an unknown time.
_FIRST = Delivery()


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
        self._tasks = keys.inflight_tasks(settings.group)
        self._watermarks = keys.queue_watermarks(settings.group)
        self._starts = keys.starts(settings.group)
        self._dead, self._dead_size = keys.dead(settings.group), keys.dead_size(settings.group)
        self._redispatch_ms = int(settings.redispatch_after_s * 1000)
        self._lease_ms = int(settings.lease_s * 1000)
        # How long a message may be received again: as long as there are marks, and as long as it may be redispatched.
        self._keep_ms = max(settings.dedup_ttl_ms, self._lease_ms + 2 * self._redispatch_ms)
        self._acknowledge_sent = script(client, "acknowledge_sent")
        self._start_run = script(client, "start_run")
        self._renew = script(client, "renew")
        self._release = script(client, "release")
        self._end = script(client, "end")
        self._find_overdue = script(client, "find_overdue")
        self._postpone = script(client, "postpone")
        self._sweep_overdue = script(client, "sweep_overdue")

    # Sending

    def acknowledge_sent(
        self, entry_ids: Sequence[bytes], tasks: Sequence[LedgerEntry], fencing_token: bytes | None = None
    ) -> bool:
        """Acknowledge journal entries and list the tasks that were sent for them, in one step.

        Arguments:
            fencing_token: As it was when the entries were read.

        Returns:
            False, and nothing is done, if the fencing token has advanced since: the entries may belong to another
            consumer now, or to handlers that another subscriber has had since. They must be read again.
        """
        args: list[Any] = [self._settings.group, self._redispatch_ms, fencing_token or b""]
        args += (len(entry_ids), *entry_ids)
        for task_id, in_flight, delay_ms in tasks:
            args += (task_id, delay_ms, in_flight)
        done = [self._keys.done(task.task_id) for task in tasks]
        fencing_token_key = self._keys.fencing_token(self._settings.group)
        keys = [self._keys.journal, self._inflight, self._tasks, fencing_token_key, *done]
        return bool(self._acknowledge_sent(keys=keys, args=args))

    def sent(self, task_ids: Sequence[str]) -> set[str]:
        """Return those of the tasks that were sent before: they are in the ledger, or have ended."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.mget([self._keys.done(task_id) for task_id in task_ids])
            for task_id in task_ids:
                pipe.hget(self._tasks, task_id)
            ended, *listed = pipe.execute()
        rows = zip(task_ids, ended, listed, strict=True)
        return {task_id for task_id, mark, record in rows if mark is not None or record is not None}

    def list_commands(self, tasks: Iterable[LedgerEntry], now_ms: int) -> list[tuple[Any, ...]]:
        """Return the commands that list tasks as sent, for the transaction that sends them.

        Arguments:
            now_ms: By the clock of the server.
        """
        due_ms = now_ms + self._redispatch_ms
        records: list[Any] = []
        scores: list[Any] = []
        for task_id, in_flight, delay_ms in tasks:
            records += (task_id, b"%d %b" % (now_ms, in_flight))
            scores += (due_ms + delay_ms, task_id)
        return [("HSET", self._tasks, *records), ("ZADD", self._inflight, *scores)]

    # Runs

    def start_run(
        self, task_id: str, token: str, *, idempotent: bool, delivery: Delivery = _FIRST, max_deaths: int | None = None
    ) -> RunStart:
        """Request the lease of a task. If it is granted, the task is running from now on.

        Arguments:
            token: Identifies this run; the same when the call is repeated after an error.
            idempotent: Whether the task must not run when it has ended or is running elsewhere.
            delivery: The message that was received.
            max_deaths: How many workers may die while they run the task; by default ``max_redispatches``.
        """
        keys = [self._keys.done(task_id), self._keys.lease(task_id), self._inflight, self._tasks, self._watermarks]
        keys += [self._starts, self._dead, self._dead_size]
        deaths = self._settings.max_redispatches if max_deaths is None else max_deaths
        args: list[Any] = [task_id, token, self._lease_ms, self._keep_ms, deaths, self._redispatch_ms, int(idempotent)]
        args += (*delivery, self._settings.dedup_ttl_ms)
        code, number = cast("list[int]", self._start_run(keys=keys, args=args))
        result = _START_RESULTS[code]
        deaths = number if result in ("started", "poisoned") else 0
        return RunStart(result, left_ms=number if result == "running" else 0, deaths=deaths)

    def renew(self, task_id: str, token: str) -> bool:
        """Renew the lease of a run; return False when it was considered dead and another run has started."""
        args: list[Any] = [token, self._lease_ms, self._keep_ms]
        return bool(self._renew(keys=[self._keys.lease(task_id)], args=args))

    def release(self, task_id: str, token: str, delay_ms: int, *, retries: int) -> None:
        """Give up the lease of a run whose task runs again in *delay_ms*, with the try of the number *retries*.

        From now on the messages of earlier tries do not start.
        """
        keys = [self._keys.lease(task_id), self._inflight, self._tasks]
        self._release(keys=keys, args=[task_id, token, self._redispatch_ms, delay_ms, retries, self._keep_ms])

    def end(self, task_id: str, ended: Ended) -> None:
        """Record the end of a task: write its done mark and remove it from the ledger."""
        keys = [self._keys.done(task_id), self._keys.lease(task_id), self._inflight, self._tasks]
        self._end(keys=keys, args=[task_id, f"- {ended.encode()}", self._settings.dedup_ttl_ms])

    def end_first(self, task_id: str, ended: Ended, pipe: Pipeline, watched: Iterable[str] = ()) -> bool:
        """Begin a transaction on *pipe*, which is empty, with the end of a task; return False if it has ended already.

        EXEC raises ``WatchError``, and changes nothing, if the task ends or a *watched* key changes before it.
        """
        pipe.watch(self._keys.done(task_id), *watched)
        if pipe.exists(self._keys.done(task_id)):
            return False
        pipe.multi()
        # What end.lua does. A script that the server has lost would fail alone, and the effect would be committed.
        pipe.set(self._keys.done(task_id), f"- {ended.encode()}", px=self._settings.dedup_ttl_ms)
        pipe.delete(self._keys.lease(task_id))
        pipe.zrem(self._inflight, task_id)
        pipe.hdel(self._tasks, task_id)
        return True

    def has_ended(self, task_id: str) -> bool:
        """Return whether a task has ended."""
        return bool(self._client.exists(self._keys.done(task_id)))

    # Redispatch

    def find_overdue(self, count: int, skipped: int = 0) -> list[Overdue]:
        """Return up to *count* tasks that should have ended, the longest overdue first, after the *skipped* first ones.

        Tasks that were given up are no longer waited for when the marks of tasks expire. They leave the ledger then.
        """
        keys = [self._inflight, self._tasks, self._watermarks]
        args = [skipped, count, self._lease_ms, self._redispatch_ms, self._settings.event_ttl_ms]
        rows: Any = self._find_overdue(keys=keys, args=args)
        return [
            Overdue(task_id.decode(), InFlightTask.decode(text), bool(left), bool(moves), event_left_ms)
            for task_id, text, left, moves, event_left_ms in rows
        ]

    def sweep_overdue(self, overdue: Sequence[Overdue], waiting: Collection[str]) -> list[Overdue]:
        """Return the tasks that must be sent again, each for the try that is due.

        Of the others, those that have ended leave the ledger, and those that run or wait are due later.

        Arguments:
            overdue: Result of :meth:`find_overdue`.
            waiting: Ids of the tasks among them whose message still seems to wait. For the first message this is
                believed for half of ``event_ttl_s``, during which the journal entry certainly exists.
        """
        keys = [self._inflight, self._tasks]
        args: list[Any] = [self._redispatch_ms, max(self._redispatch_ms, self._settings.event_ttl_ms // 2)]
        for task in overdue:
            keys += (self._keys.done(task.task_id), self._keys.lease(task.task_id))
            args += (task.task_id, int(task.task_id in waiting))
        rows = cast("list[tuple[bytes, int]]", self._sweep_overdue(keys=keys, args=args))
        due = {task_id.decode(): retries for task_id, retries in rows}
        return [
            replace(task, in_flight=task.in_flight.at_try(due[task.task_id])) for task in overdue if task.task_id in due
        ]

    def postpone(self, task_id: str, delay_s: float) -> None:
        """Consider an overdue task again after *delay_s*; until then, other tasks come first."""
        self._postpone(keys=[self._inflight], args=[task_id, int(delay_s * 1000)])

    # For operators

    def task_statuses(self, task_ids: Sequence[str]) -> list[TaskStatus]:
        """Return what is known of tasks, in one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            for task_id in task_ids:
                pipe.get(self._keys.done(task_id))
                pipe.hget(self._keys.lease(task_id), "until_ms")
                pipe.hget(self._tasks, task_id)
            time, *replies = pipe.execute()
        now_ms = server_ms(time)
        return [
            TaskStatus(
                None if mark is None else Ended.read(mark),
                until_ms is not None and int(until_ms) > now_ms,
                None if record is None else InFlightTask.decode(record.partition(b" ")[2]),
            )
            for mark, until_ms, record in zip(replies[::3], replies[1::3], replies[2::3], strict=True)
        ]

    def size(self) -> int:
        """Return how many tasks were sent and have not ended, including those that were given up."""
        return self._client.zcard(self._inflight)

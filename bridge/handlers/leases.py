"""The runs of handler tasks in this process: begun once, kept alive, ended for good or given back.

A task costs two round trips: one to begin, one to end. A run that takes longer is kept alive by a thread, so that
its lease outlives the task but not the process.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError, WatchError

from bridge.bus import EventBus, current_request, get_bus
from bridge.errors import BridgeError, BusUnavailable
from bridge.redis import attempt
from bridge.storage import Begun, DeadLetter, Ended
from bridge.telemetry import Action, LogThrottle, log_fields, redacting_errors

log = logging.getLogger(__name__)

#: Attribute of a request: when its task began, by the monotonic clock.
_BEGAN = "bridge_began_s"

#: Pause between two lines about the same trouble of a task.
_SAY_AGAIN_S = 600.0

_executions: WeakKeyDictionary[EventBus, Leases] = WeakKeyDictionary()


@dataclass(frozen=True)
class _End:
    """The end of a task: with a dead letter, or well; *unless_begun*: not if it has ended or another copy runs."""

    letter: DeadLetter | None
    ended: Ended
    unless_begun: bool = False


class Leases:
    """What one process runs of one bus; safe for several threads.

    Arguments:
        bus: Its client and settings are used.
    """

    def __init__(self, bus: EventBus) -> None:
        self._client = bus.client
        self._settings = bus.settings
        self._ledger = bus.storage.ledger
        self._dead_letters = bus.storage.dead_letters
        self._lock = threading.Lock()
        #: Task id to the token of its run.
        self._running: dict[str, str] = {}
        #: Tasks whose end is still to be noted.
        self._ends: dict[str, _End] = {}
        self._keeper: threading.Thread | None = None
        self._pace = LogThrottle(_SAY_AGAIN_S)
        self._wake = threading.Event()

    def redacting_errors(self, event: dict[str, Any]) -> AbstractContextManager[None]:
        """Return a context that errors leave without what is sensitive in *event*, see concealment.py."""
        return redacting_errors(self._settings.redaction, event)

    def begin(self, task_id: str, *, idempotent: bool, retries: int = 0) -> Begun:
        """Ask whether a task may run; if so it counts as running until one of the methods below is called.

        Arguments:
            idempotent, retries: See :meth:`Ledger.begin`.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        token = secrets.token_hex(8)
        begun = attempt(
            self._settings,
            f"beginning task {task_id}",
            lambda: self._ledger.begin(task_id, token, idempotent=idempotent, retries=retries),
        )
        if begun.outcome == "begun":
            if (request := current_request()) is not None:
                setattr(request, _BEGAN, time.monotonic())
            with self._lock:
                self._running[task_id] = token
                self._start_keeper()
        return begun

    def end(self, task_id: str, letter: DeadLetter | None = None) -> None:
        """Note that a task has ended, and its dead letter in the same step: it will not run again.

        While Redis is away this process remembers it, and keeps the lease, until it can be noted.
        """
        end = _End(letter, _ending())
        try:
            attempt(self._settings, f"noting the end of task {task_id}", lambda: self._write_end(task_id, end))
        except BusUnavailable as error:
            extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=self._settings.group)
            log.warning("%s Tried again in the background.", error, extra=extra)
            with self._lock:
                self._ends[task_id] = end
                self._start_keeper()
        else:
            self.release_locally(task_id)

    def end_in_background(self, task_id: str, letter: DeadLetter, *, unless_begun: bool) -> None:
        """Have a thread note the end of a task: for the main process of a worker, which nothing may hold up.

        Arguments:
            unless_begun: Do nothing if the task has ended, or another copy of its message runs.
        """
        with self._lock:
            waits = self._ends.get(task_id)
            if waits is None or waits.unless_begun:  # what must be noted is not replaced by what may be
                self._ends[task_id] = _End(letter, _ending(), unless_begun)
            self._start_keeper()
        self._wake.set()

    def release(self, task_id: str, delay_s: float) -> None:
        """Give a run up whose task comes again in *delay_s*.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries. The task then waits for its own lease.
        """
        token = self.release_locally(task_id)
        if token is not None:
            delay_ms = max(0, int(delay_s * 1000))
            what = f"releasing task {task_id}"
            attempt(self._settings, what, lambda: self._ledger.release(task_id, token, delay_ms))

    def release_locally(self, task_id: str) -> str | None:
        """Let the lease of a run expire, and return its token: how it ended is for others to say."""
        with self._lock:
            return self._running.pop(task_id, None)

    def has_ended(self, task_id: str) -> bool:
        """Ask whether a task has ended, here or elsewhere.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        return attempt(
            self._settings, f"looking for the end of task {task_id}", lambda: self._ledger.has_ended(task_id)
        )

    def mark_done(self, task_id: str, pipe: Pipeline) -> None:
        """Queue the end of a task on a transaction, which fails if another copy of the task ends before it.

        Raises:
            WatchError: It has ended.
        """
        if not self._ledger.end_first(task_id, _ending(), pipe):
            raise WatchError(f"task {task_id} has ended elsewhere: its lease was over before its effect")

    def _write_end(self, task_id: str, end: _End) -> None:
        if end.unless_begun:
            begun = self._ledger.begin(task_id, secrets.token_hex(8), idempotent=True)
            if begun.outcome in ("ended", "running"):
                return
        if end.letter is not None:
            self._dead_letters.bury(end.letter, end.ended)
            return
        with self._client.pipeline(transaction=True) as pipe:
            self._ledger.end(task_id, end.ended, pipe)
            pipe.execute()

    # The thread that keeps leases alive

    def _start_keeper(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep_alive, name="bridge-leases", daemon=True)
            self._keeper.start()

    def _keep_alive(self) -> None:
        """Renew the leases of long runs and note late ends; ends when there was nothing to do for one round."""
        kept: dict[str, str] = {}
        while True:
            # Two tries fit into a lease before it is lost.
            self._wake.wait(self._settings.lease_s / 3)
            self._wake.clear()
            with self._lock:
                if not (self._running or self._ends):
                    self._keeper = None
                    return
                running, ends = dict(self._running), dict(self._ends)
            try:
                for task_id, token in running.items() & kept.items():
                    self._renew(task_id, token)
                for task_id, end in ends.items():
                    self._note_late(task_id, end)
            except (RedisError, OSError) as error:
                if self._pace.allow("leases"):
                    extra = log_fields(Action.LEASE_RENEWAL_FAILED, group=self._settings.group, count=len(running))
                    log.warning("leases not renewed: %s", error, extra=extra)
            kept = running

    def _note_late(self, task_id: str, end: _End) -> None:
        try:
            self._write_end(task_id, end)
        except ResponseError as error:
            if self._pace.allow(f"end {task_id}"):
                extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=self._settings.group)
                log.warning("the end of task %s is not noted: %s", task_id, error, extra=extra)
            return  # others may have better luck
        with self._lock:
            if self._ends[task_id] is not end:
                return  # replaced meanwhile
            del self._ends[task_id]
            self._running.pop(task_id, None)

    def _renew(self, task_id: str, token: str) -> None:
        if not self._ledger.renew(task_id, token) and self._running.get(task_id) == token and self._pace.allow(token):
            extra = log_fields(Action.LEASE_LOST, task_id=task_id, group=self._settings.group)
            text = "task %s lost its lease, as after a long freeze: another copy of it may run"
            log.error(text, task_id, extra=extra)


def _ending() -> Ended:
    """Return how the running task ends that ends now; nothing is known in the main process of a worker."""
    request = current_request()
    began_s = getattr(request, _BEGAN, None)
    runtime_ms = -1 if began_s is None else int((time.monotonic() - began_s) * 1000)
    queue = (getattr(request, "delivery_info", None) or {}).get("routing_key") or ""
    return Ended(runtime_ms=runtime_ms, queue=str(queue))


def get_leases() -> Leases:
    """Return those of this process's bus for the current Celery application.

    Raises:
        SettingsError: A setting is unknown or does not fit.
    """
    bus = get_bus()  # another one after a fork: nothing of the parent's is used
    return _executions.get(bus) or _executions.setdefault(bus, Leases(bus))


def mark_done(pipe: Pipeline) -> None:
    """Make the end of the running handler part of the transaction that has its effect.

    Without it a handler's end is noted after the handler returns, and a worker killed exactly between its effect and
    that note repeats the effect. For effects in the Redis of the bus, this closes the gap::

        with get_bus().client.pipeline() as pipe:
            pipe.incrby("balance", event.payload["amount"])
            mark_done(pipe)
            pipe.execute()

    It also begins the transaction: when this run was taken for dead, as after a long freeze, and another copy of the
    task has ended meanwhile, ``execute()`` fails with redis-py's ``WatchError`` and has no effect. Let that error pass;
    the task is then skipped like any copy that comes too late. A handler that watches keys of its own calls this in the
    place of ``pipe.multi()``.

    For effects elsewhere, write the task's id (``task.request.id``, the same for every copy and retry) as a unique
    key in the same transaction.

    Arguments:
        pipe: A ``MULTI``/``EXEC`` pipeline of the bus's client. Nothing of the handler should come after it.

    Raises:
        BridgeError: Called outside a running task, with a pipeline that is no transaction, or after its ``multi()``.
        WatchError: Another copy of the task has ended.
        RedisError: Redis does not answer.
    """
    request = current_request()
    if request is None or request.id is None:
        raise BridgeError("mark_done() marks the running task; call it inside a handler that a worker runs")
    if not pipe.transaction:  # type: ignore[truthy-function]  # an attribute of the same name hides the method
        raise BridgeError("mark_done() needs a pipeline with transaction=True, or effect and mark could part")
    if pipe.explicit_transaction:
        raise BridgeError("mark_done() begins the transaction itself; call it in the place of multi()")
    get_leases().mark_done(str(request.id), pipe)

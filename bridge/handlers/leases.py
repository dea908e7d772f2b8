"""The runs of handler tasks in this process: begun once, kept alive, ended for good or given back.

A task costs two round trips: one to begin, one to end. A run that takes longer is kept alive by a thread, so that
its lease outlives the task but not the process.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError, ResponseError

from bridge.bus import EventBus, per_bus, run_state
from bridge.errors import BusUnavailable
from bridge.redis import attempt
from bridge.storage import Begun, DeadLetter, Ended
from bridge.telemetry import Action, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Interval between two lines of the log about the same problem, in seconds.
_LOG_INTERVAL_S = 600.0


@dataclass(frozen=True)
class _End:
    """The end of a task: with a dead letter, or well; *unless_begun*: not if it has ended or another copy runs."""

    letter: DeadLetter | None
    ended: Ended
    unless_begun: bool = False


#: Of a run of which this process knows nothing.
_UNKNOWN = Ended()


class Leases:
    """What one process runs of one bus; safe for several threads.

    Arguments:
        bus: Its client and settings are used.
    """

    def __init__(self, bus: EventBus) -> None:
        self._client = bus.client
        self.settings = bus.settings
        self._ledger = bus.storage.ledger
        self._dead_letters = bus.storage.dead_letters
        self._lock = threading.Lock()
        #: Task id to the token of its run.
        self._running: dict[str, str] = {}
        #: Tasks whose end is still to be noted.
        self._ends: dict[str, _End] = {}
        self._keeper: threading.Thread | None = None
        self._throttle = LogThrottle(_LOG_INTERVAL_S)
        self._wake = threading.Event()

    def begin(self, task_id: str, *, idempotent: bool, retries: int = 0) -> Begun:
        """Ask whether a task may run; if so it counts as running until one of the methods below is called.

        Arguments:
            idempotent, retries: See :meth:`Ledger.begin`.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        token = secrets.token_hex(8)
        begun = attempt(
            self.settings,
            f"beginning task {task_id}",
            lambda: self._ledger.begin(task_id, token, idempotent=idempotent, retries=retries),
        )
        if begun.outcome == "begun":
            with self._lock:
                self._running[task_id] = token
                self._start_keeper()
        return begun

    def end(self, task_id: str, letter: DeadLetter | None = None, ended: Ended = _UNKNOWN) -> None:
        """Note that a task has ended, and its dead letter in the same step: it will not run again.

        While Redis is away this process remembers it, and keeps the lease, until it can be noted.
        """
        end = _End(letter, ended)
        try:
            attempt(self.settings, f"noting the end of task {task_id}", lambda: self._write_end(task_id, end))
        except BusUnavailable as error:
            extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=self.settings.group)
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
                self._ends[task_id] = _End(letter, _UNKNOWN, unless_begun)
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
            attempt(self.settings, what, lambda: self._ledger.release(task_id, token, delay_ms))

    def release_locally(self, task_id: str) -> str | None:
        """Let the lease of a run expire, and return its token: how it ended is for others to say."""
        with self._lock:
            return self._running.pop(task_id, None)

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
            self._wake.wait(self.settings.lease_s / 3)
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
                if self._throttle.allow("leases"):
                    extra = log_fields(Action.LEASE_RENEWAL_FAILED, group=self.settings.group, count=len(running))
                    log.warning("leases not renewed: %s", error, extra=extra)
            kept = running

    def _note_late(self, task_id: str, end: _End) -> None:
        try:
            self._write_end(task_id, end)
        except ResponseError as error:
            if self._throttle.allow(f"end {task_id}"):
                extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=self.settings.group)
                log.warning("the end of task %s is not noted: %s", task_id, error, extra=extra)
            return  # others may have better luck
        with self._lock:
            if self._ends[task_id] is not end:
                return  # replaced meanwhile
            del self._ends[task_id]
            self._running.pop(task_id, None)

    def _renew(self, task_id: str, token: str) -> None:
        lost = not self._ledger.renew(task_id, token) and self._running.get(task_id) == token
        if lost and self._throttle.allow(token):
            extra = log_fields(Action.LEASE_LOST, task_id=task_id, group=self.settings.group)
            text = "task %s lost its lease, as after a long freeze: another copy of it may run"
            log.error(text, task_id, extra=extra)


def end_of(request: Any) -> Ended:
    """Return how the run that *request* describes ends, if it ends now."""
    began_s = run_state(request).began_s
    runtime_ms = -1 if began_s is None else int((time.monotonic() - began_s) * 1000)
    return Ended(runtime_ms=runtime_ms, queue=str((request.delivery_info or {}).get("routing_key") or ""))


def get_leases() -> Leases:
    """Return the leases of this process on its bus, for the current Celery application.

    Raises:
        SettingsError: A setting is unknown or invalid.
    """
    return per_bus(Leases)

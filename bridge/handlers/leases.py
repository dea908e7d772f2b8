"""Leases of the handler tasks that run in this process: acquired, renewed, released, or replaced by the task's end.

A task costs two round trips, one to begin and one to end. A thread renews the leases of longer runs, so that a lease
lasts as long as its run and expires soon after its process has crashed.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError, ResponseError

from bridge.bus import EventBus, per_bus, run_state
from bridge.errors import BusUnavailable
from bridge.handlers.progress import stopping_for_s
from bridge.redis import attempt, heals_by_waiting
from bridge.storage import DeadLetter, Delivery, Ended, RunStart
from bridge.telemetry import Action, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Interval between two lines of the log about the same problem, in seconds.
_LOG_INTERVAL_S = 600.0
#: How long a worker that stops waits for Redis to record the end of a task.
_STOP_WAIT_S = 60.0
#: The same for ends that a process remembers when it ends.
_EXIT_WAIT_S = 10.0
#: Between the attempts to record an end.
_backoff = ExponentialWithJitterBackoff(cap=2.0, base=0.05)


@dataclass(frozen=True)
class _End:
    """The end of a task that is to be recorded, with a dead letter unless it succeeded.

    With *unless_begun* it is dropped if the task has ended meanwhile, or would not start with this message.
    """

    dead_letter: DeadLetter | None
    ended: Ended
    unless_begun: Delivery | None = None


#: The end of a run whose runtime and queue this process does not know.
_UNKNOWN = Ended()
#: The message of a task that was sent once.
_FIRST = Delivery()


class Leases:
    """The leases that this process holds on one bus. Thread-safe.

    Arguments:
        bus: Supplies client, settings and storage.
    """

    def __init__(self, bus: EventBus) -> None:
        self.settings = bus.settings
        self._ledger = bus.storage.ledger
        self._dead_letters = bus.storage.dead_letters
        self._lock = threading.Lock()
        #: The token of each run, by task id.
        self._running: dict[str, str] = {}
        #: Ends that are not recorded yet, by task id.
        self._ends: dict[str, _End] = {}
        #: Leases that could not be released yet, by their token.
        self._releases: dict[str, Callable[[], None]] = {}
        self._renewer: threading.Thread | None = None
        self._throttle = LogThrottle(_LOG_INTERVAL_S)
        self._wake = threading.Event()

    def begin(
        self, task_id: str, *, idempotent: bool, delivery: Delivery = _FIRST, max_deaths: int | None = None
    ) -> RunStart:
        """Try to acquire the lease of a task. It is renewed until one of the methods below is called.

        Arguments:
            idempotent, delivery, max_deaths: See :meth:`Ledger.start_run`.

        Raises:
            BusUnavailable: Redis did not answer, after bounded retries.
        """
        token = secrets.token_hex(8)
        start = partial(self._ledger.start_run, task_id, token, idempotent=idempotent, delivery=delivery)
        begun = attempt(self.settings, f"beginning task {task_id}", partial(start, max_deaths=max_deaths))
        if begun.result == "started":
            with self._lock:
                self._running[task_id] = token
                self._start_renewing()
        return begun

    def token_of(self, task_id: str) -> str:
        """Return the token of the run of a task in this process; empty if it has ended."""
        return self._running.get(task_id, "")

    def end(
        self,
        task_id: str,
        dead_letter: DeadLetter | None = None,
        ended: Ended = _UNKNOWN,
        *,
        unless_begun: Delivery | None = None,
    ) -> None:
        """Record that a task has ended, together with its dead letter if it has one: it will not run again.

        The message of the task is acknowledged when this returns. So it waits for Redis as long as that is unavailable;
        meanwhile a thread renews the lease. An end that Redis refuses for another reason, for example because a key has
        the wrong type, is recorded in the background when the reason is gone: it must not block the other tasks.

        Arguments:
            unless_begun: The message of a run that never began. Do nothing if the task has ended, is running or was
                retried.

        Raises:
            BusUnavailable: The worker has been stopping for a minute, and Redis is still unavailable.
        """
        end = _End(dead_letter, ended, unless_begun)
        for failures in itertools.count():
            try:
                attempt(self.settings, f"recording the end of task {task_id}", lambda: self._write_end(task_id, end))
            except BusUnavailable as error:
                waiting = heals_by_waiting(error.__cause__)
                if failures == 0:
                    extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=self.settings.group)
                    text = "Could not record the end of task %s; retrying%s. %s"
                    log.warning(text, task_id, "" if waiting else " in the background", error, extra=extra)
                if not waiting:
                    self._record_later(task_id, end)
                    return
                if stopping_for_s() > _STOP_WAIT_S:
                    self._log_lost(task_id)
                    raise
            else:
                self.release_locally(task_id)
                return
            time.sleep(_backoff.compute(min(failures, 16)))

    def end_in_background(
        self, task_id: str, dead_letter: DeadLetter | None = None, *, unless_begun: Delivery | None = None
    ) -> None:
        """Have a thread record the end of a task, because the main process of a worker must not be blocked.

        Arguments:
            unless_begun: The message that was dropped. Do nothing if the task has ended, is running or was retried.
        """
        self._record_later(task_id, _End(dead_letter, _UNKNOWN, unless_begun))

    def wait_for_ends(self, timeout_s: float) -> None:
        """Wait until the ends and releases that this process remembers are recorded: the process is about to end."""
        deadline_s = time.monotonic() + timeout_s
        while (self._ends or self._releases) and time.monotonic() < deadline_s:
            self._wake.set()
            time.sleep(0.1)
        with self._lock:
            lost, self._ends = list(self._ends), {}
        for task_id in lost:
            self._log_lost(task_id)

    def _log_lost(self, task_id: str) -> None:
        extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=self.settings.group)
        text = "The worker stops, but the end of task %s is not recorded, so the task runs again"
        log.error(text, task_id, extra=extra)

    def _record_later(self, task_id: str, end: _End) -> None:
        with self._lock:
            pending = self._ends.get(task_id)
            if pending is None or pending.unless_begun is not None:  # an end that is certain is not replaced by another
                self._ends[task_id] = end
            self._start_renewing()
        self._wake.set()

    def release(self, task_id: str, delay_s: float, retries: int) -> None:
        """Release the lease of a run whose task runs again in *delay_s* seconds, with the try of the number *retries*.

        Raises:
            BusUnavailable: Redis did not answer, after bounded retries. A thread repeats it: until then a copy of the
                message of this run could start when the lease has expired.
        """
        token = self.release_locally(task_id)
        if token is None:
            return
        release = partial(self._ledger.release, task_id, token, max(0, int(delay_s * 1000)), retries=retries)
        try:
            attempt(self.settings, f"releasing task {task_id}", release)
        except BusUnavailable:
            with self._lock:
                self._releases[token] = release
                self._start_renewing()
            raise

    def release_locally(self, task_id: str) -> str | None:
        """Stop renewing the lease of a run, so that it expires, and return its token."""
        with self._lock:
            return self._running.pop(task_id, None)

    def _write_end(self, task_id: str, end: _End) -> None:
        if end.unless_begun is not None:
            token = secrets.token_hex(8)
            begun = self._ledger.start_run(task_id, token, idempotent=True, delivery=end.unless_begun)
            if begun.result in ("ended", "running", "superseded"):
                return
        if end.dead_letter is not None:
            self._dead_letters.end_task_with(end.dead_letter, end.ended)
            return
        self._ledger.end(task_id, end.ended)

    # The thread that renews leases

    def _start_renewing(self) -> None:
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._renew_all, name="bridge-leases", daemon=True)
            self._renewer.start()

    def _renew_all(self) -> None:
        """Renew the leases of long runs, and record what could not be recorded, until there is nothing left to do."""
        renewed: dict[str, str] = {}
        while True:
            # A lease allows for two attempts before it expires.
            self._wake.wait(self.settings.lease_s / 3)
            self._wake.clear()
            with self._lock:
                if not (self._running or self._ends or self._releases):
                    self._renewer = None
                    return
                running, ends, releases = dict(self._running), dict(self._ends), dict(self._releases)
            try:
                for task_id, token in running.items() & renewed.items():
                    try:
                        self._renew(task_id, token)
                    except ResponseError as error:  # refused: other leases can be renewed
                        self._log_failure(error)
                for task_id, end in ends.items():
                    self._record_late(task_id, end)
                for token, release in releases.items():
                    with suppress(ResponseError):  # refused: other leases can be released
                        release()
                        del self._releases[token]
            except (RedisError, OSError) as error:
                self._log_failure(error)
            renewed = running

    def _log_failure(self, error: Exception) -> None:
        if self._throttle.allow("leases"):
            extra = log_fields(Action.LEASE_RENEWAL_FAILED, group=self.settings.group, count=len(self._running))
            log.warning("Could not renew task leases; running tasks may be started elsewhere: %s", error, extra=extra)

    def _record_late(self, task_id: str, end: _End) -> None:
        try:
            self._write_end(task_id, end)
        except ResponseError as error:
            if self._throttle.allow(f"end {task_id}"):
                extra = log_fields(Action.TASK_END_NOT_RECORDED, task_id=task_id, group=self.settings.group)
                log.warning("Redis refuses to record the end of task %s; retrying: %s", task_id, error, extra=extra)
            return  # the ends of other tasks may be recorded
        with self._lock:
            if self._ends.get(task_id) is not end:
                return  # it was replaced meanwhile
            del self._ends[task_id]
            self._running.pop(task_id, None)

    def _renew(self, task_id: str, token: str) -> None:
        lost = not self._ledger.renew(task_id, token) and self._running.get(task_id) == token
        if lost and self._throttle.allow(token):
            extra = log_fields(Action.LEASE_LOST, task_id=task_id, group=self.settings.group)
            log.error("Task %s lost its lease (a frozen process?); another copy may be running.", task_id, extra=extra)


def end_of(request: Any) -> Ended:
    """Return what the done mark holds if the run that *request* describes ends now."""
    began_s = run_state(request).began_s
    runtime_ms = -1 if began_s is None else int((time.monotonic() - began_s) * 1000)
    return Ended(runtime_ms=runtime_ms, queue=str((request.delivery_info or {}).get("routing_key") or ""))


def get_leases() -> Leases:
    """Return the leases of this process on its bus, for the current Celery application.

    Raises:
        SettingsError: A setting is unknown or invalid.
    """
    return per_bus(Leases)


def wait_for_ends(**_: object) -> None:
    """Wait until the ends of tasks that this process remembers are recorded. Called by Celery before a process ends."""
    get_leases().wait_for_ends(_EXIT_WAIT_S)

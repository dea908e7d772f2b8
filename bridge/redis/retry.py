"""Retries: how often a command is repeated, and how long to wait before that."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bridge.config import BridgeSettings
from bridge.errors import BusUnavailable
from bridge.redis import deadline
from bridge.redis.error_codes import heals_by_waiting
from bridge.redis.error_hints import describe_error, hint_for
from bridge.telemetry import Action, Counters, log_fields

T = TypeVar("T")

_LOST_REPLY = (RedisConnectionError, RedisTimeoutError)
#: Between the attempts of one publication, for which a caller waits.
_publish_backoff = ExponentialWithJitterBackoff(cap=1.0, base=0.05)
#: Between the attempts of a loop that never gives up.
_loop_backoff = ExponentialWithJitterBackoff(cap=5.0, base=0.1)


def attempt(
    settings: BridgeSettings, what: str, do: Callable[[], T], *, limit_s: float | None = None, unconfirmed: str = ""
) -> T:
    """Run *do*, which must be safe to repeat, and repeat it with back-off if waiting may help.

    Arguments:
        settings: After ``publish_timeout_s`` no further attempt starts. The last one takes as long as it needs, within
            ``socket_timeout_s`` for each part of a reply.
        what: What is attempted, for the error text.
        do: Sends commands to Redis.
        limit_s: End after this time instead, with all that *do* waits for, connects, sends and receives.
        unconfirmed: What to say if a reply may have been lost, so that Redis may have done what was attempted.

    Raises:
        BusUnavailable: No attempt succeeded. The text names the cause and what to check.
    """
    ends_at_s = time.monotonic() + (settings.publish_timeout_s if limit_s is None else limit_s)
    token = None if limit_s is None else deadline.ends_at_s.set(ends_at_s)
    failures, before = 0, None
    try:
        while True:
            try:
                return do()
            except RedisError as caught:
                # An attempt that the limit has cut short does not say what is wrong, but the one before it does.
                cut_short = isinstance(caught, RedisTimeoutError) and time.monotonic() >= ends_at_s
                error = before if cut_short and before is not None else caught
                failures, before = failures + 1, error
                pause_s = _publish_backoff.compute(min(failures, 16))
                if not heals_by_waiting(error) or time.monotonic() + pause_s >= ends_at_s:
                    lost = unconfirmed and isinstance(error, _LOST_REPLY) and heals_by_waiting(error)
                    text = f"{what} failed: Redis at {settings.redacted_url}: {describe_error(error)}. {_advice(error)}"
                    raise BusUnavailable(f"{text} {unconfirmed}" if lost else text) from error
            time.sleep(pause_s)
    finally:
        if token is not None:
            deadline.ends_at_s.reset(token)


class BackOff:
    """The waits of a loop that never gives up. Every failure is counted, and the first one of an outage is logged.

    Arguments:
        log: The logger of the loop's module.
        what: What fails, for the log.
        counters: Counts ``errors`` and ``reconnects``.
        stop: Ends a wait at once.
    """

    def __init__(self, log: logging.Logger, what: str, counters: Counters, stop: threading.Event) -> None:
        self._log = log
        self._what = what
        self._counters = counters
        self._stop = stop
        #: Number of failures since the last success, and the last error.
        self.failures = 0
        self.last = ""

    def wait(self, error: BaseException) -> None:
        """Wait after a failure, with jitter; each failure in a row makes the wait longer."""
        self._counters.add("errors")
        kind = type(error).__name__
        self.last = f"{kind}: {describe_error(error)}"
        if self.failures == 0:
            hint = f". {advice}" if (advice := hint_for(error)) else ""
            self._log.warning("%s: %s%s", self._what, self.last, hint, extra=log_fields(Action.OUTAGE, reason=kind))
        self._stop.wait(_loop_backoff.compute(min(self.failures, 16)))
        self.failures += 1

    def reset(self) -> None:
        """Record a success, which ends the outage."""
        if self.failures:
            extra = log_fields(Action.OUTAGE_OVER, count=self.failures)
            self._log.info("%s: resolved after %d failed attempts", self._what, self.failures, extra=extra)
            self._counters.add("reconnects")
        self.failures = 0


def _advice(error: RedisError) -> str:
    if found := hint_for(error, "BRIDGE_REDIS_URL"):
        return found
    if isinstance(error, AuthenticationError | AuthorizationError):
        return "Check the user and password of BRIDGE_REDIS_URL."
    if isinstance(error, OutOfMemoryError):
        return "Raise maxmemory of Redis, or lower bridge_event_ttl_s."
    if isinstance(error, ReadOnlyError):
        return "This server is a replica: set BRIDGE_REDIS_URL to the address of the primary."
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return "Check that it is running and that BRIDGE_REDIS_URL is correct."
    return "Check the key it names, or grant this user the permission with ACL SETUSER."

"""What is tried again when Redis does not answer, and how long to wait in between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from bridge.config import BridgeSettings
from bridge.errors import BusUnavailable
from bridge.redis.error_hints import describe_error, hint_for
from bridge.telemetry import Action, Counters, log_fields

T = TypeVar("T")

#: Heal by waiting: a restart, a failover, a full network, a full memory.
TRANSIENT = (
    RedisConnectionError,
    RedisTimeoutError,
    ReadOnlyError,
    ClusterDownError,
    TryAgainError,
    OutOfMemoryError,
    NoScriptError,  # forgotten between two commands of a pipeline
)
#: Subclasses of ConnectionError that waiting does not heal.
_PERMANENT = (AuthenticationError, AuthorizationError)

#: Between the tries of one publication: a caller waits for it.
_publish_backoff = ExponentialWithJitterBackoff(cap=1.0, base=0.05)
#: Between the rounds of a loop that never gives up.
_loop_backoff = ExponentialWithJitterBackoff(cap=5.0, base=0.1)


def attempt(settings: BridgeSettings, what: str, do: Callable[[], T]) -> T:
    """Run *do*, which must be safe to repeat, with bounded retries and back-off.

    Arguments:
        settings: ``publish_attempts`` bounds the tries.
        what: What is being attempted, for the error text.
        do: Talks to Redis.

    Raises:
        BusUnavailable: It did not succeed; the text names the cause and what to check.
    """
    retry = Retry(_publish_backoff, settings.publish_attempts - 1, TRANSIENT)
    try:
        return retry.call_with_retry(do, lambda _: None, is_retryable=lambda error: not isinstance(error, _PERMANENT))
    except RedisError as error:
        text = f"{what}: Redis at {settings.redacted_url} says {describe_error(error)}. {_advice(error)}"
        raise BusUnavailable(text) from error


class BackOff:
    """The waits of a loop that never gives up: every failure is counted, the first of a row logged.

    Arguments:
        log: Of the module whose loop it is.
        what: What fails, for the log.
        counters: Raises ``errors``.
        stop: Ends a wait at once.
    """

    def __init__(self, log: logging.Logger, what: str, counters: Counters, stop: threading.Event) -> None:
        self._log = log
        self._what = what
        self._counters = counters
        self._stop = stop
        #: Failures since the last success, and the last of them.
        self.failures = 0
        self.last = ""

    def wait(self, error: Exception) -> None:
        """Wait after a failure, with jitter, longer after each one in a row."""
        self._counters.add("errors")
        kind = type(error).__name__
        self.last = f"{kind}: {describe_error(error)}"
        if self.failures == 0:
            hint = f". {advice}" if (advice := hint_for(error)) else ""
            self._log.warning("%s: %s%s", self._what, self.last, hint, extra=log_fields(Action.OUTAGE, reason=kind))
        self._stop.wait(_loop_backoff.compute(min(self.failures, 16)))
        self.failures += 1

    def reset(self) -> None:
        """Note a success."""
        if self.failures:
            extra = log_fields(Action.OUTAGE_OVER, count=self.failures)
            self._log.info("%s: over after %d failures", self._what, self.failures, extra=extra)
            self._counters.add("reconnects")
        self.failures = 0


def _advice(error: RedisError) -> str:
    if found := hint_for(error, "BRIDGE_REDIS_URL"):
        return found
    if isinstance(error, AuthenticationError | AuthorizationError):
        return "Check the user and password of BRIDGE_REDIS_URL."
    if isinstance(error, OutOfMemoryError):
        return "Raise maxmemory or shorten bridge_event_ttl_s."
    if isinstance(error, ReadOnlyError):
        return "The address leads to a replica; point BRIDGE_REDIS_URL at the primary."
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return "Check that it runs and that BRIDGE_REDIS_URL is right."
    return "Check the key it names, or grant this user the right with ACL SETUSER."

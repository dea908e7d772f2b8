"""Redis clients, scripts, and what to do when Redis is away.

redis-py repeats commands by itself unless told otherwise. Ours never does: every repetition goes through
:func:`attempt` or a loop of the subscriber, where the write is known to be safe to repeat.

A client leads to the one server that holds the bridge's own keys. In a Redis Cluster the event keys are elsewhere too,
see event_keys.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.commands.core import Script
from redis.connection import BlockingConnectionPool
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

from bridge.advice import remedy, told
from bridge.errors import BusUnavailable
from bridge.keys import Keys
from bridge.logs import about
from bridge.metrics import Counters
from bridge.primary import Cluster, by_sentinel, pool
from bridge.settings import BridgeSettings

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

_CONNECT_TIMEOUT_S = 3.0
#: Of one client, unless its URL says ``max_connections``; who needs one more waits for ``socket_timeout_s``.
_MAX_CONNECTIONS = 50

#: Between the tries of one publication: a caller waits for it.
_publish_backoff = ExponentialWithJitterBackoff(cap=1.0, base=0.05)
#: Between the rounds of a loop that never gives up.
_loop_backoff = ExponentialWithJitterBackoff(cap=5.0, base=0.1)


def connect(settings: BridgeSettings, timeout_s: float | None = None) -> Redis:
    """Return a client for the bus; it connects with the first command and may be shared by threads.

    Arguments:
        settings: Where it is.
        timeout_s: Longest wait for a connection and for an answer, for those who only look; else by the settings.
    """
    address = settings.address
    answer_s = timeout_s or settings.socket_timeout_s
    sockets = {
        "socket_timeout": answer_s,
        "socket_connect_timeout": min(answer_s, _CONNECT_TIMEOUT_S),
        "socket_keepalive": True,
    }
    no_retry = Retry(NoBackoff(), 0)
    options: dict[str, Any] = {
        **sockets,
        "decode_responses": False,  # one byte that is no UTF-8 would raise inside redis-py and lose the message
        "client_name": settings.client_name,
        "protocol": 2,  # the reply shapes this code reads; RESP3 has others for streams
    }
    of_pool = {"retry": no_retry, "max_connections": _MAX_CONNECTIONS, "timeout": answer_s}
    if address.kind == "server":
        return Redis.from_pool(pool(address, None, **options, **of_pool))
    if address.kind == "sentinel":
        locate = by_sentinel(address, retry=no_retry, protocol=2, **sockets)
        return Redis.from_pool(pool(address, locate, **options, **of_pool))
    cluster = Cluster(address, retry=no_retry, **options)
    journal = Keys(settings.channel_prefix).journal
    return _OwnKeysClient(cluster, pool(address, lambda: cluster.locate(journal), **options, **of_pool))


class _OwnKeysClient(Redis):
    """A client for the bridge's own keys in a cluster."""

    def __init__(self, redis_cluster: Cluster, pool: BlockingConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True  # it is nobody else's
        self.redis_cluster = redis_cluster

    def close(self) -> None:
        super().close()
        self.redis_cluster.close()


def look_again(client: Redis) -> None:
    """Let go of the connections that nobody uses: new ones ask where the primary is."""
    client.connection_pool.disconnect(inuse_connections=False)


def cluster_of(client: Redis) -> Cluster | None:
    """Return the Redis Cluster that a client of :func:`connect` leads into, None when it is one server."""
    return client.redis_cluster if isinstance(client, _OwnKeysClient) else None


def servers_of(client: Redis) -> list[tuple[str, Redis]]:
    """Return a client for each server that holds something of the bus, with its address if there are several.

    Raises:
        RedisConnectionError: No node of the cluster answers.
    """
    cluster = cluster_of(client)
    if cluster is None:
        return [("", client)]
    return [(f"{place[0]}:{place[1]}", one) for place, one in cluster.primaries()]


@cache
def _script_text(name: str) -> str:
    return resources.files("bridge").joinpath("lua", f"{name}.lua").read_text("utf-8")


def script(client: Redis, name: str) -> Script:
    """Return ``lua/{name}.lua`` ready to call; after SCRIPT FLUSH it loads itself again."""
    return client.register_script(_script_text(name))


def entries_by_id(client: Redis, key: str, entry_ids: Sequence[str]) -> dict[str, dict[bytes, bytes]]:
    """Return the fields of those of the entries of a stream that are there, by id; one round trip."""
    with client.pipeline(transaction=False) as pipe:
        for entry_id in entry_ids:
            pipe.xrange(key, entry_id, entry_id)
        return {entry_id.decode(): fields for rows in pipe.execute() for entry_id, fields in rows}


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
        text = f"{what}: Redis at {settings.redacted_url} says {told(error)}. {_advice(error)}"
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
        self.last = f"{kind}: {told(error)}"
        if self.failures == 0:
            hint = f". {advice}" if (advice := remedy(error)) else ""
            self._log.warning("%s: %s%s", self._what, self.last, hint, extra=about("outage", reason=kind))
        self._stop.wait(_loop_backoff.compute(min(self.failures, 16)))
        self.failures += 1

    def reset(self) -> None:
        """Note a success."""
        if self.failures:
            extra = about("outage_over", count=self.failures)
            self._log.info("%s: over after %d failures", self._what, self.failures, extra=extra)
            self._counters.add("reconnects")
        self.failures = 0


def _advice(error: RedisError) -> str:
    if found := remedy(error, "BRIDGE_REDIS_URL"):
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

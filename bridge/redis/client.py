"""Clients for the Redis of the bus.

By default, redis-py repeats commands. These clients never do: commands are repeated only by :func:`attempt` and by the
loops of the subscriber, where writes are known to be safe to repeat.

A client connects to the one server that holds the bridge's own keys. In a Redis Cluster, event keys are on other
servers too, see storage/event_keys.py.
"""

from __future__ import annotations

from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import BlockingConnectionPool
from redis.retry import Retry

from bridge.config import BridgeSettings
from bridge.redis.connection import LimitedPool
from bridge.redis.topology import Cluster, by_sentinel, pool

_CONNECT_TIMEOUT_S = 3.0
#: Of one client, unless its URL sets ``max_connections``. A thread that needs another one waits for
#: ``socket_timeout_s``.
_MAX_CONNECTIONS = 50


def connect(settings: BridgeSettings, timeout_s: float | None = None) -> Redis:
    """Return a client for the bus. It connects with the first command, and threads may share it.

    Arguments:
        settings: ``redis_url``, ``socket_timeout_s`` and ``client_name``.
        timeout_s: Longest wait for a connection and for a reply, for probes; None: ``socket_timeout_s``.
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
        "decode_responses": False,  # a byte that is not UTF-8 would raise inside redis-py and lose the message
        "client_name": settings.client_name,
        "protocol": 2,  # RESP3 has other replies for streams
    }
    of_pool = {"retry": no_retry, "max_connections": _MAX_CONNECTIONS, "timeout": answer_s}
    if address.kind == "server":
        return Redis.from_pool(pool(address, None, **options, **of_pool))
    if address.kind == "sentinel":
        locate = by_sentinel(address, retry=no_retry, protocol=2, **sockets)
        return Redis.from_pool(pool(address, locate, **options, **of_pool))
    cluster = Cluster(address, retry=no_retry, **options)
    own_slot = f"{{{settings.channel_prefix}}}"  # the hash tag of every key of our own
    return _OwnKeysClient(cluster, pool(address, lambda: cluster.locate(own_slot), **options, **of_pool))


class _OwnKeysClient(Redis):
    """A client for the bridge's own keys in a cluster."""

    def __init__(self, redis_cluster: Cluster, pool: BlockingConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True  # no other client uses the pool
        self.redis_cluster = redis_cluster

    def close(self) -> None:
        super().close()
        self.redis_cluster.close()


def drop_idle_connections(client: Redis) -> None:
    """Close the connections that are not in use: new ones ask where the primary is."""
    cast("LimitedPool", client.connection_pool).disconnect_idle()


def cluster_of(client: Redis) -> Cluster | None:
    """Return the Redis Cluster of a client from :func:`connect`; None if the bus is on one server."""
    return client.redis_cluster if isinstance(client, _OwnKeysClient) else None


def servers_of(client: Redis) -> list[tuple[str, Redis]]:
    """Return a client for each server that holds keys of the bus, with its address if there are several.

    Raises:
        RedisConnectionError: No node of the cluster answers.
    """
    cluster = cluster_of(client)
    if cluster is None:
        return [("", client)]
    return [(f"{place[0]}:{place[1]}", one) for place, one in cluster.primaries()]

"""Access to the Redis of the bus: one client for a server, Sentinels or a cluster, and what its errors mean.

This part does not know any key. Clients never repeat a command by themselves: :func:`attempt` and :class:`BackOff` are
the only retries. After a crash or a failover, new connections go to the server that is the primary then.
"""

from bridge.redis.client import cluster_of, connect, drop_idle_connections, servers_of
from bridge.redis.error_codes import heals_by_waiting, is_wrong_type
from bridge.redis.error_hints import describe_error, hint_for
from bridge.redis.raw import RawConnection
from bridge.redis.retry import BackOff, attempt

__all__ = [
    "BackOff",
    "RawConnection",
    "attempt",
    "cluster_of",
    "connect",
    "describe_error",
    "drop_idle_connections",
    "heals_by_waiting",
    "hint_for",
    "is_wrong_type",
    "servers_of",
]

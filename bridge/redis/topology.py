"""Where the primary is, the server that holds the bridge's own keys: Sentinels and Redis Clusters know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis, RedisCluster
from redis.cluster import ClusterNode
from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from bridge.config import Address
from bridge.redis.connection import LimitedPool, Place, limited
from bridge.redis.error_hints import describe_error


def pool(address: Address, locate: Callable[[], Place] | None, **options: Any) -> LimitedPool:
    """Return a bounded pool of connections.

    Arguments:
        locate: Is called whenever one of them connects, and returns where to. None: they connect to the address.
        options: Options of pool and connections, as in redis-py. Those of the address take precedence.
    """
    return LimitedPool(**limited(options | address.options, locate))  # type: ignore[no-untyped-call]


def by_sentinel(address: Address, **options: Any) -> Callable[[], Place]:
    """Return a function that asks the Sentinels for the primary of the service.

    Arguments:
        options: Options of the connections to Sentinels.
    """
    given = limited(options | address.sentinel_options)
    known = [(place, Redis.from_pool(ConnectionPool(host=place[0], port=place[1], **given))) for place in address.hosts]

    def locate() -> Place:
        # Not redis-py's Sentinel: its error shows its clients, but not the reply of the last Sentinel.
        problems = []
        for place, client in list(known):
            try:
                states: Any = client.sentinel_masters()
            except RedisError as error:
                problems.append(f"{place[0]}:{place[1]}: {describe_error(error)}")
                continue
            state = states.get(address.service)
            if state is None:
                problems.append(f"{place[0]}:{place[1]} does not watch the service {address.service}")
            elif not state["is_master"] or state["is_sdown"] or state["is_odown"]:
                problems.append(f"{place[0]}:{place[1]} considers it dead")
            else:
                known[:] = sorted(
                    known, key=lambda one: one[0] != place
                )  # a Sentinel that answered is asked first next time
                return state["ip"], int(state["port"])
        raise RedisConnectionError(f"no Sentinel names the primary: {'; '.join(problems)}")

    return locate


def _reason(error: RedisClusterException) -> RedisError:
    """Return the cause of an error of redis-py's cluster client: a wrong password is not a lost connection."""
    cause = error.__cause__
    return type(cause)(str(cause)) if isinstance(cause, RedisError) else RedisConnectionError(str(error))


class Cluster:
    """A Redis Cluster. Its client is created when it is first used, because redis-py then connects at once.

    Arguments:
        address: Nodes to connect to first.
        options: Options of connections, as in redis-py.
    """

    def __init__(self, address: Address, **options: Any) -> None:
        self._address = address
        self._options = options
        self._client: RedisCluster | None = None

    @property
    def client(self) -> RedisCluster:
        """A client for keys of any slot. It follows redirections by itself and repeats nothing else.

        Raises:
            RedisConnectionError: No node answers, or they are not in cluster mode.
        """
        if self._client is None:
            *others, (host, port) = self._address.hosts
            try:
                self._client = RedisCluster(
                    startup_nodes=[ClusterNode(*place) for place in others],
                    # With a URL, redis-py uses the class of connections that it is given.
                    url=f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}",
                    require_full_coverage=False,  # a dead primary must not block the slots of the others
                    **limited(self._options | self._address.options),
                )
            except RedisClusterException as error:
                raise _reason(error) from error
        return self._client

    def locate(self, key: str) -> Place:
        """Return where the primary that holds *key* is, after asking the cluster.

        Raises:
            RedisConnectionError: No node answers, or none holds the key.
        """
        client = self._refreshed()
        try:
            node = client.get_node_from_key(key)
        except RedisClusterException as error:
            raise _reason(error) from error
        return node.host, node.port

    def primaries(self) -> list[tuple[Place, Redis]]:
        """Return the place of each primary and a client for it, after asking the cluster.

        Raises:
            RedisConnectionError: No node answers.
        """
        client = self._refreshed()
        nodes = client.get_primaries()
        return [((node.host, node.port), client.get_redis_connection(node)) for node in nodes]

    def _refreshed(self) -> RedisCluster:
        client = self.client
        try:
            client.nodes_manager.initialize()
        except RedisClusterException as error:
            raise _reason(error) from error
        return client

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

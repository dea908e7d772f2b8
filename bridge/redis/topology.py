"""Connections that follow the primary, the server that holds the bridge's own keys.

Sentinels and Redis Clusters promote a replica when a primary dies. So each connection asks where the primary is when it
connects. If a server replies that it is not the primary, the connection is closed, and its user gets a lost connection:
every loop survives this, and every write is safe to repeat after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis, RedisCluster
from redis.cluster import ClusterNode
from redis.connection import BlockingConnectionPool, Connection, SSLConnection
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.sentinel import Sentinel

from bridge.config import Address
from bridge.redis.error_hints import describe_error

#: Errors of a server that does not hold the keys, or no longer does. A MovedError is an AskError.
_ELSEWHERE = (ReadOnlyError, AskError, ClusterDownError)
#: Start of the error of a server with ``min-replicas-to-write`` whose replicas already follow another primary.
_NO_REPLICAS = "NOREPLICAS"

Place = tuple[str, int]


class _FollowingConnection(Connection):
    """A connection to the place that *locate* returns whenever it connects."""

    def __init__(self, locate: Callable[[], Place], **options: Any) -> None:
        self._locate = locate
        super().__init__(**options)  # type: ignore[no-untyped-call]  # mypy exempts redis-py, but not through super()

    def connect(self) -> None:
        if self._sock is None:  # is_connected exists since redis-py 8
            self.host, self.port = self._locate()
        super().connect()  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if not isinstance(error, _ELSEWHERE) and not str(error).startswith(_NO_REPLICAS):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]
            raise RedisConnectionError(f"not the primary of these keys: {describe_error(error)}") from error


class _FollowingTlsConnection(_FollowingConnection, SSLConnection):
    """The same over TLS: what :class:`_FollowingConnection` calls on its base class is that of SSLConnection here."""


def pool(address: Address, locate: Callable[[], Place] | None, **options: Any) -> BlockingConnectionPool:
    """Return a bounded pool of connections.

    Arguments:
        locate: Is called whenever one of them connects, and returns where to. None: they connect to the address.
        options: Options of pool and connections, as in redis-py. Those of the address take precedence.
    """
    options |= address.options
    if locate is not None:
        options["connection_class"] = _FollowingTlsConnection if address.secure else _FollowingConnection
        options["locate"] = locate
    return BlockingConnectionPool(**options)


def _of_client(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of connections as options of redis-py's clients, which choose the class of connections."""
    given = {name: value for name, value in options.items() if name != "connection_class"}
    return given | {"ssl": True} if "connection_class" in options else given


def by_sentinel(address: Address, **options: Any) -> Callable[[], Place]:
    """Return a function that asks the Sentinels for the primary of the service.

    Arguments:
        options: Options of the connections to Sentinels.
    """
    given = options | _of_client(address.sentinel_options)
    sentinel = Sentinel(list(address.hosts), sentinel_kwargs=given)
    known = list(zip(address.hosts, sentinel.sentinels, strict=True))

    def locate() -> Place:
        # Not discover_master(): its error shows redis-py's clients, but not the reply of the last Sentinel.
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
            elif not sentinel.check_master_state(state, address.service):
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
            nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
            try:
                self._client = RedisCluster(
                    startup_nodes=nodes,
                    require_full_coverage=False,  # a dead primary must not block the slots of the others
                    **self._options | _of_client(self._address.options),
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

"""Connections that observe the deadline of the thread that uses them, their pool, and some that follow the primary.

Sentinels and Redis Clusters promote a replica when a primary dies. So each connection asks where the primary is when it
connects. If a server replies that it is not the primary, the connection is closed, and its user gets a lost connection:
every loop survives this, and every write is safe to repeat after it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from typing import Any

from redis.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from bridge.redis.deadline import LimitedSocket, at_most
from bridge.redis.error_hints import describe_error

#: Errors of a server that does not hold the keys, or no longer does. A MovedError is an AskError.
_ELSEWHERE = (ReadOnlyError, AskError, ClusterDownError)
#: Start of the error of a server with ``min-replicas-to-write`` whose replicas already follow another primary.
_NO_REPLICAS = "NOREPLICAS"

Place = tuple[str, int]


class _Limited(AbstractConnection):
    """A connection that is made and used before the deadline; the name of a host may take longer to look up."""

    _socket_connect_timeout: float | None

    @property
    def socket_connect_timeout(self) -> float | None:
        """How long the next address of the host may take to accept the connection."""
        return at_most(self._socket_connect_timeout)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, timeout_s: float | None) -> None:
        self._socket_connect_timeout = timeout_s

    def _connect(self) -> Any:
        sock = super()._connect()  # type: ignore[no-untyped-call,safe-super]  # each class of redis-py defines it
        return LimitedSocket(sock, self.socket_timeout)


class _LimitedConnection(_Limited, Connection):
    """A connection over TCP."""


class _LimitedTlsConnection(_Limited, SSLConnection):
    """A connection over TLS."""

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        sock.settimeout(at_most(self.socket_timeout))  # of the whole handshake
        return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]


class _LimitedUnixConnection(_Limited, UnixDomainSocketConnection):
    """A connection to a socket of this host."""


class _FollowingConnection(_LimitedConnection):
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


class _FollowingTlsConnection(_FollowingConnection, _LimitedTlsConnection):
    """The same over TLS: what :class:`_FollowingConnection` calls on its base class is that of the TLS one here."""


class LimitedPool(BlockingConnectionPool):
    """A bounded pool of connections, in which a thread waits for a free one until the deadline at most."""

    @property
    def timeout(self) -> float | None:
        """How long to wait for a free connection."""
        return at_most(self._timeout_s)

    @timeout.setter
    def timeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def disconnect_idle(self) -> None:
        """Close the connections that are not in use; the method of redis-py cannot do that before 7.0."""
        places = []
        with suppress(Empty):
            while True:
                places.append(self.pool.get_nowait())  # so that no other thread uses the connection meanwhile
        for connection in reversed(places):
            if connection is not None:  # no connection was made here yet
                connection.disconnect()
            self.pool.put_nowait(connection)


def limited(options: dict[str, Any], locate: Callable[[], Place] | None = None) -> dict[str, Any]:
    """Return options of connections, as in redis-py, with a class of connections that observes the deadline.

    Arguments:
        locate: Is called whenever one of them connects, and returns where to. None: they connect to the address.
    """
    kind = options.get("connection_class", Connection)
    if locate is not None:
        follows = _FollowingTlsConnection if kind is SSLConnection else _FollowingConnection
        return options | {"connection_class": follows, "locate": locate}
    return options | {"connection_class": _LIMITED[kind]}


_LIMITED: dict[Any, Any] = {
    Connection: _LimitedConnection,
    SSLConnection: _LimitedTlsConnection,
    UnixDomainSocketConnection: _LimitedUnixConnection,
}

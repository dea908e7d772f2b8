"""A deadline for everything that a thread does on Redis, however many connections, commands and retries it takes.

The classes in ``connection.py`` observe it. Without a deadline, each step on a socket may take as long as its own
timeout, so a server that answers slowly, byte by byte, could take any time.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from typing import Any

#: The deadline of a thread, by :func:`time.monotonic`.
ends_at_s: ContextVar[float] = ContextVar("bridge_redis_deadline", default=math.inf)

#: Instead of no time, which would mean a socket that does not wait: redis-py reports a timeout then.
_NO_TIME_S = 0.001
#: By how much an operation may miss the deadline: each change of a timeout is a system call.
_TOLERANCE_S = 0.05
_deadline, _now = ends_at_s.get, time.monotonic


def at_most(timeout_s: float | None) -> float | None:
    """Return a timeout, or the time until the deadline if that is shorter. None is a timeout that never ends."""
    left_s = _deadline() - _now()
    if timeout_s is not None and timeout_s <= left_s:
        return timeout_s
    return None if left_s == math.inf else max(left_s, _NO_TIME_S)


class LimitedSocket:
    """A connected socket whose operations end at the deadline of the thread that calls them.

    Arguments:
        sock: A socket, also one of TLS.
        timeout_s: How long one operation may take without a deadline.
    """

    def __init__(self, sock: Any, timeout_s: float | None) -> None:
        self._sock = sock
        self._sendall, self._recv_into = sock.sendall, sock.recv_into
        # redis-py polls the socket before each command. Only one of TLS has pending data.
        self.fileno, self.pending = sock.fileno, getattr(sock, "pending", int)
        self.settimeout(timeout_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """Set how long one operation may take without a deadline."""
        self._timeout_s = timeout_s
        self._set(timeout_s)

    # The next two are on the path of every publication. So the usual case takes no further call.

    def sendall(self, data: Any) -> None:
        """See :meth:`socket.socket.sendall`."""
        left_s = _deadline() - _now()
        if self._current_s > left_s + _TOLERANCE_S or (self._shortened and self._current_s < left_s - _TOLERANCE_S):
            self._set(at_most(self._timeout_s))
        self._sendall(data)

    def recv_into(self, buffer: Any) -> int:
        """See :meth:`socket.socket.recv_into`."""
        left_s = _deadline() - _now()
        if self._current_s > left_s + _TOLERANCE_S or (self._shortened and self._current_s < left_s - _TOLERANCE_S):
            self._set(at_most(self._timeout_s))
        size: int = self._recv_into(buffer)
        return size

    def recv(self, *args: Any) -> bytes:
        """See :meth:`socket.socket.recv`."""
        self._set(at_most(self._timeout_s))
        received: bytes = self._sock.recv(*args)
        return received

    def _set(self, timeout_s: float | None) -> None:
        self._current_s = math.inf if timeout_s is None else timeout_s
        self._shortened = timeout_s != self._timeout_s
        self._sock.settimeout(timeout_s)

"""Free ports for servers that are started later."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack, suppress

#: Below the ephemeral ports of Linux, which another test might get. On other systems, these start higher.
_FIRST, _END = 10_000, 32_768


def free_ports(count: int) -> list[int]:
    """Return different ports that no process listens on, and that are not ephemeral ports."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            probe, port = stack.enter_context(socket.socket()), _FIRST + secrets.randbelow(_END - _FIRST)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def free_port() -> int:
    """Return one free port; see :func:`free_ports`."""
    (port,) = free_ports(1)
    return port

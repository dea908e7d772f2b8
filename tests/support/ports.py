"""Ports for servers that are started later."""

from __future__ import annotations

import secrets
import socket
from contextlib import ExitStack, suppress

#: Below the ports that Linux gives to whoever asks for any, another test above all; other systems begin higher.
_FIRST, _END = 10_000, 32_768


def free_ports(count: int) -> list[int]:
    """Return different ports that nobody listens on, and that the system gives to nobody."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            probe, port = stack.enter_context(socket.socket()), _FIRST + secrets.randbelow(_END - _FIRST)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def free_port() -> int:
    """Return one of them."""
    (port,) = free_ports(1)
    return port

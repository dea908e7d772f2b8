"""The Redis of ``bus dev``: the one that the application uses on this machine, or a temporary one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bridge.config import BridgeSettings
from bridge.testing import RedisServer

_THIS_MACHINE = ("localhost", "127.0.0.1")
#: Persistent only so that the bridge does not warn: the data is deleted with the server.
_OPTIONS = ("--appendonly", "yes")


class DevRedis(NamedTuple):
    """A Redis to develop with."""

    url: str
    #: What it is, for people to read.
    description: str
    #: Whether the application uses it in other terminals, too, without being given its address.
    is_of_application: bool


@contextmanager
def redis_for(settings: BridgeSettings) -> Iterator[DevRedis]:
    """Yield the Redis at the address in *settings* if that is on this machine; if none is there, start one meanwhile.

    An address of another machine is used only if it is set in the environment: the one of the configuration may be
    that of production. A temporary Redis on a free port is started instead.

    Raises:
        BridgeError: No redis-server is installed, or it did not start.
    """
    port = _port_here(settings)
    if port is not None and not _is_used(port):
        with RedisServer(arguments=_OPTIONS, port=port):
            yield DevRedis(settings.url, f"{settings.redacted_url}, deleted with its data at the end", True)
    elif port is not None or os.environ.get("REDIS_URL") or os.environ.get("BRIDGE_REDIS_URL"):
        yield DevRedis(settings.url, f"the server that is running at {settings.redacted_url}", True)
    else:
        with RedisServer(arguments=_OPTIONS) as server:
            yield DevRedis(server.url, f"{server.url}, deleted with its data at the end", False)


def _port_here(settings: BridgeSettings) -> int | None:
    """Return the port of the bus, if a temporary server on this machine can take its place."""
    address = settings.address
    needs_more = {"password", "username", "connection_class"} & address.options.keys()
    if address.kind != "server" or len(address.hosts) != 1 or needs_more:
        return None
    host, port = address.hosts[0]
    return port if host in _THIS_MACHINE else None


def _is_used(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

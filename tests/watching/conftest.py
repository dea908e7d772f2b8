"""What the tests of watching share: a bus, a listener to every command, and applications with handlers."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis
from redis.connection import Connection

from bridge import BridgeSettings, EventBus
from bridge.devserver import RedisServer
from bridge.handlers import registry
from tests.conftest import make_app

#: Runs a function and returns the commands of clients, and the commands inside their scripts.
Listen = Callable[[Callable[[], Any]], tuple[list[str], list[str]]]
#: Asks a subscriber for a path; returns status and text.
Ask = Callable[[str], tuple[int, str]]
#: Runs a function twice and returns how many round trips the second took.
RoundTrips = Callable[[Callable[[], Any]], int]


@pytest.fixture
def bus(settings: BridgeSettings) -> Iterator[EventBus]:
    with EventBus(settings) as connected:
        yield connected


@pytest.fixture
def port() -> int:
    """A free port for the metrics of a subscriber."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def ask(port: int) -> Ask:
    """Ask the subscriber whose metrics are at ``port``; status 0 while nobody answers there."""

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    return get


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


@pytest.fixture
def user_app(server: RedisServer, prefix: str) -> Iterator[Celery]:
    """The handlers of ``tests.watching.app``, and no others, in an application with broker and results of this test."""
    import tests.watching.app  # noqa: F401  # not with this module: it makes its application the default one

    before = list(registry)
    registry.clear()
    for handler in before:
        if handler.task_name.startswith("tests.watching."):
            registry.add(handler)
    with make_app(server.url, prefix) as app:
        app.conf.result_backend = server.url
        app.conf.result_backend_transport_options = {"global_keyprefix": f"broker:{prefix}"}
        yield app
    registry.clear()
    for handler in before:
        registry.add(handler)

"""What the tests of watching share: a bus, a listener to every command, and applications with handlers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.connection import Connection

from bridge.handlers.handler import registry
from bridge.operations.task_states import EventNode, TaskNode
from bridge.operations.trace import Tracer
from bridge.testing.redis_server import RedisServer
from tests.conftest import make_app
from tests.ports import free_port

#: Runs a function and returns the commands of clients, and the commands inside their scripts.
Listen = Callable[[Callable[[], Any]], tuple[list[str], list[str]]]
#: Asks a subscriber for a path; returns status and text.
Ask = Callable[[str], tuple[int, str]]
#: Runs a function twice and returns how many round trips the second took.
RoundTrips = Callable[[Callable[[], Any]], int]


class Page:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of this name that have these labels; None when there is none."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found) if found else None

    def events(self, outcome: str) -> dict[str, float]:
        """How many events came to this, by type; every outcome is there from the beginning, at 0 without a type."""
        rows = [one for one in self.samples if one.name == "bridge_events_total" and one.labels["outcome"] == outcome]
        assert rows
        return {one.labels["type"]: one.value for one in rows if one.value}

    def buckets(self, name: str, group: str = "tests") -> list[tuple[float, float]]:
        """Upper bound and count of each class of a histogram."""
        rows = [one for one in self.samples if one.name == f"{name}_bucket" and one.labels["group"] == group]
        return [(float(one.labels["le"]), one.value) for one in rows]


#: Asks a subscriber for its metrics.
Scrape = Callable[[], Page]


def tree(node: EventNode | TaskNode) -> Any:
    """A node as its label and what is below it, in the order of the labels."""
    below: list[Any] = [tree(event) for event in node.events]
    if isinstance(node, EventNode):
        label = node.event_type or f"({node.event_id})"
        below += [tree(task) for task in node.tasks]
        below += [(f"{node.hidden} more", [])] if node.hidden else []
    else:
        label = " ".join(filter(None, (node.handler.removeprefix("tests.watching.app."), node.state, node.replay)))
    return label, sorted(below)


def trees(tracer: Tracer, any_id: str) -> Any:
    found = tracer.trace(any_id)
    return found and [tree(root) for root in found.roots]


def events(root: EventNode | TaskNode) -> list[EventNode]:
    """Every event of a tree, from the top."""
    below = [*root.events, *(root.tasks if isinstance(root, EventNode) else ())]
    return ([root] if isinstance(root, EventNode) else []) + [one for node in below for one in events(node)]


def tasks(root: EventNode | TaskNode) -> list[TaskNode]:
    return [task for event in events(root) for task in event.tasks]


def ready(ask: Ask) -> bool:
    return ask("/readyz")[0] == 200


def problems(ask: Ask) -> str:
    """Why the subscriber is not ready; empty when it is, or does not answer."""
    status, text = ask("/readyz")
    return "; ".join(json.loads(text)["problems"]) if status == 503 else ""


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Where a process accepts connections."""
    return {tuple(one.laddr) for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}


@pytest.fixture
def port() -> int:
    """A free port for the metrics of a subscriber."""
    return free_port()


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
def scrape(ask: Ask) -> Scrape:
    def get() -> Page:
        status, text = ask("/metrics")
        assert status == 200
        return Page(text)

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

"""``bus check`` with real workers."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings
from bridge.handlers.delivery import SENT_HEADER
from bridge.handlers.handler import registry
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.apps import Invoke
from tests.support.check import CHECKS, passed, wrong
from tests.support.cli import invoker, on_bus
from tests.support.processes import Processes
from tests.support.terminal import OpenTerminal
from tests.support.waiting import eventually

HERE = "tests.chains"
#: An application with its own group and no handlers, on the same Redis.
OTHER = """
import os
from celery import Celery
import bridge
app = Celery("other", broker=os.environ["REDIS_URL"])
app.conf.broker_transport_options = {"global_keyprefix": "broker:" + os.environ["BRIDGE_CHANNEL_PREFIX"]}
bridge.install(app)
"""


@pytest.fixture
def url(own_server: RedisServer) -> str:
    """The URL of a Redis that loses nothing, with the bus, the broker and the results of these tests."""
    return own_server.url


@pytest.fixture
def admin(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as client:
        yield client


@pytest.fixture
def settings(url: str, prefix: str) -> BridgeSettings:
    return BridgeSettings.load(redis_url=url, channel_prefix=prefix, group="tests")


@pytest.fixture
def app(user_app: Celery, url: str) -> Celery:
    """The handlers of tests/chains.py on that Redis."""
    user_app.conf.broker_url = user_app.conf.result_backend = url
    return user_app


@pytest.fixture
def check(app: Celery, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run ``bus check ...`` in this process."""
    on_bus(settings, monkeypatch)
    monkeypatch.setattr("bridge.cli.checks._WORKERS_S", 0.1)  # for the tests without workers
    return invoker(app, "check")


@pytest.fixture
def worker(
    processes: Processes, url: str, admin: Redis, app: Celery, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Start a worker on that Redis and wait until it is ready."""

    def run(queues: str) -> Any:
        monkeypatch.setattr("bridge.cli.checks._WORKERS_S", 1.0)
        command = ["worker", "-n", "w1@test", "-c", "1", "-l", "INFO", "-Q", queues]
        running = processes.celery(*command, app=HERE, name="w1", REDIS_URL=url)
        eventually(lambda: "w1@test ready" in processes.log("w1"), "the worker is ready", 30)
        eventually(
            lambda: app.control.ping(timeout=0.5), "the worker replies"
        )  # the first log line that reports it as ready is too early
        eventually(
            lambda: [one.ready for one in Storage(admin, settings).presence.all()] == [True], "its subscriber is ready"
        )
        return running

    return run


# With a real worker


def test_all_is_well(check: Invoke, worker: Callable[..., Any], url: str, terminal: OpenTerminal) -> None:
    """If all is well, the status is 0, with one line (in JSON, one object) for each check."""
    running = worker("celery,plain")
    assert check().stdout.splitlines() == [f"ok    {text}" for text in [f"bus at {url}", *CHECKS[1:]]]
    rows = [json.loads(line) for line in check("--json").stdout.splitlines()]
    assert rows == [{"check": text, "level": "ok", "findings": []} for text in [f"bus at {url}", *CHECKS[1:]]]
    assert check("--ready").stdout == f"ok    subscribers on {socket.gethostname()}\n"
    assert (at_terminal := terminal("bus", "check", "--ready", app=HERE, REDIS_URL=url)).wait() == 0
    assert "\x1b[32mok    \x1b[0msubscribers on" in at_terminal.text

    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert wrong(check("--ready", expect=1)) == [(f"subscriber on {socket.gethostname()}", "no live subscriber")]
    result = check(expect=1)
    assert wrong(result) == [("group tests", "no live subscriber; backlog: 0 events"), ("workers", "none replied")]
    assert len(passed(result)) == len(CHECKS) - 2


def test_handlers_and_queues_without_a_worker(check: Invoke, worker: Callable[..., Any]) -> None:
    """A handler that no live worker has, and a queue that no worker consumes, are reported by name."""
    worker("celery")
    registry.add(HANDLERS["t.own"])
    result = check(expect=1)
    assert [about for about, _ in wrong(result)] == ["handler t.own", "queue own", "queue plain"]
    assert re.match(
        r"no live worker has registered it, so its tasks would be rejected \(.*tests/handlers.py:", wrong(result)[0][1]
    )
    assert "      -> start one, or add it to task_queues\n         celery -A APP worker -Q plain\n" in result.stdout


def test_a_worker_of_another_application_takes_from_the_same_queue(
    check: Invoke, worker: Callable[..., Any], app: Celery, processes: Processes, url: str, tmp_path: Path
) -> None:
    """A worker that takes tasks from a queue and does not have their handlers is reported, and logs what it loses."""
    worker("plain")
    (tmp_path / "other.py").write_text(OTHER)
    command = ["worker", "-n", "other@test", "-P", "solo", "--without-mingle"]
    processes.celery(*command, app="other", name="other", REDIS_URL=url, PYTHONPATH=str(tmp_path))
    eventually(lambda: app.control.ping(["other@test"], timeout=0.5), "the other worker replies", 30)
    result = check(expect=1)
    assert [about for about, _ in wrong(result)] == ["workers of queue celery"]
    assert wrong(result)[0][1].startswith(f"tasks of {HERE}.flight, {HERE}.hotel, ")
    assert "are discarded by other@test" in wrong(result)[0][1]
    assert 'app.conf.task_default_queue = "tests"' in result.stdout

    app.send_task(f"{HERE}.trip", task_id="t-1", queue="celery", headers={SENT_HEADER: "1"})
    lost = "Task t-1 was discarded, because this worker takes tasks from queue celery and does not have handler"
    eventually(lambda: f"{lost} {HERE}.trip" in processes.log("other"), "the loss is logged")

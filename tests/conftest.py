"""Fixtures for all tests: real Redis servers and Celery applications, and one prefix per test."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.handlers.handler import Registry, registry
from bridge.subscriber.subscriber import Subscriber
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.apps import Invoke, StartSubscriber, make_app
from tests.support.cli import invoker, on_bus
from tests.support.groups import GroupScheduling
from tests.support.ports import free_port
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.replays import Replays
from tests.support.requirements import ALL_REDIS_KINDS, any_redis_binary, redis_binary, summary
from tests.support.restricted_redis import RestrictedRedis
from tests.support.scrape import Ask, Page, Scrape
from tests.support.strategies import quick_examples


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share servers run in one process."""
    return GroupScheduling(config, log)


@pytest.fixture(scope="session", params=list(ALL_REDIS_KINDS))
def restricted_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis whose users the tests may change; the tests run once with each kind of Redis."""
    with RedisServer(redis_binary(request.param), ["--appendonly", "yes"]) as running:
        yield running


@pytest.fixture
def restricted_redis(restricted_server: RedisServer, prefix: str, register_handlers) -> Iterator[RestrictedRedis]:
    register_handlers("t.exact", "t.chosen", "t.picky")
    with (
        make_app(restricted_server.url, prefix) as app,
        Redis.from_url(restricted_server.url, single_connection_client=True) as admin,
    ):
        app.conf.result_backend_transport_options = {"global_keyprefix": f"broker:{prefix}"}
        yield RestrictedRedis(restricted_server, prefix, app, admin)
        for user in admin.acl_users():
            if user != "default":
                admin.acl_deluser(user)


@pytest.fixture
def invoke(app: Celery, settings: BridgeSettings, register_handlers, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run ``bus ...`` in this process, with the handlers t.exact and t.plain."""
    register_handlers("t.exact", "t.plain")
    on_bus(settings, monkeypatch)
    return invoker(app)


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    """A Redis shared by the tests of one run; each test has its own prefix. Do not stop or flush it."""
    with RedisServer(any_redis_binary()) as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis for one test, which may kill, freeze or flush it."""
    with RedisServer(any_redis_binary(), ["--appendonly", "yes", "--appendfsync", "always"]) as running:
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
    """A bus on the shared server with the settings of the test."""
    with EventBus(settings) as connected:
        yield connected


@pytest.fixture
def replays(client: Redis, settings: BridgeSettings) -> Replays:
    """The replays and dead letters of the test."""
    return Replays(client, settings)


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A proxy to the shared server that can cause faults."""
    with Proxy(server.port) as running:
        yield running


@pytest.fixture
def register_handlers() -> Iterator[Callable[..., None]]:
    """Register the named handlers of ``tests/handlers.py``, and no others, until the test ends."""
    before = list(registry)
    registry.clear()

    def register(*names: str) -> None:
        for name in names:
            registry.add(HANDLERS[name])

    yield register
    registry.clear()
    for handler in before:
        registry.add(handler)


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
def start_subscriber(app: Celery, settings: BridgeSettings) -> Iterator[StartSubscriber]:
    """Start subscribers in this process, by default with ``app`` and on ``server``.

    The fixture stops them after the test and asserts that none of their threads is left.
    """
    started: list[Subscriber] = []
    before = set(threading.enumerate())  # the leases of an earlier test end by themselves, seconds later

    def start_one(
        name: str = "one", app: Celery = app, handlers: Registry = registry, ready: bool = True, **changes: object
    ) -> Subscriber:
        changed = {"redis_url": settings.url, "channel_prefix": settings.channel_prefix, "group": "tests"} | changes
        subscriber = Subscriber(app, BridgeSettings.load(**{"block_ms": 100, **changed}), name, handlers)
        started.append(subscriber)
        subscriber.start()
        assert not ready or subscriber.ready.wait(30)
        return subscriber

    yield start_one
    for subscriber in started:
        subscriber.stop()
    threads = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("bridge-")]
    for thread in threads:
        thread.join(10)
    assert not [thread for thread in threads if thread.is_alive()]


@pytest.fixture
def queues(client: Redis, prefix: str) -> Queues:
    return Queues(client, prefix)


@pytest.fixture
def port() -> int:
    """A free port for the metrics of a subscriber."""
    return free_port()


@pytest.fixture
def ask(port: int) -> Ask:
    """Send a request to the subscriber whose metrics are at ``port``; the status is 0 if the connection fails."""

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
def user_app(server: RedisServer, prefix: str) -> Iterator[Celery]:
    """An application with exactly the handlers of ``tests.chains``; broker and results are on the shared server."""
    import tests.chains  # noqa: F401  # imported late, as it sets the default application

    before = list(registry)
    registry.clear()
    for handler in before:
        if handler.task_name.startswith("tests.chains."):
            registry.add(handler)
    with make_app(server.url, prefix) as app:
        app.conf.result_backend = server.url
        app.conf.result_backend_transport_options = {"global_keyprefix": f"broker:{prefix}"}
        yield app
    registry.clear()
    for handler in before:
        registry.add(handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="one kind of Redis, few examples of models, no thorough tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        quick_examples()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Print one line with the programs that this machine lacks, after the summary of pytest."""
    yield
    reports = terminalreporter.stats.get("skipped", [])
    if line := summary(str(report.longrepr[2]) for report in reports if isinstance(report.longrepr, tuple)):
        terminalreporter.write_line(line, yellow=True)

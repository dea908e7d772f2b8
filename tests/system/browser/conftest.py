"""One bus, one worker, one Flower and one browser for all tests of the pages; each test uses different events."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator

import pytest
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.testing.redis_server import RedisServer
from tests.support.flower import Browser, Flower, Site, headless_chrome
from tests.support.processes import Processes, environment_on
from tests.support.requirements import missing, program
from tests.support.subscribers import subscribers
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def site(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if importlib.util.find_spec("flower") is None:
        missing("flower")
    prefix = f"test:{uuid.uuid4().hex[:12]}:"
    processes = Processes(tmp_path_factory.mktemp("site"), environment_on(server, prefix))
    processes.worker("w1", "-Q", "celery")  # without -Q, it would take all queues of its handlers
    settings = BridgeSettings.load(redis_url=server.url, channel_prefix=prefix, group="tests")
    with EventBus(settings=settings) as bus, Redis.from_url(server.url) as client:
        eventually(lambda: subscribers(client, prefix) == 1, "the worker is subscribed", 40)
        yield Site(processes, bus, client, settings)
    processes.end()


@pytest.fixture(scope="session")
def flower(site: Site) -> Flower:
    return site.flower("flower")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    program("chromium")
    driver = program("chromedriver")
    with headless_chrome(driver) as started:
        yield Browser(started)


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser in its initial state; errors in the console of a page fail the test."""
    chromium.emulate(1400)
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []
    chromium.open("about:blank")


@pytest.fixture
def name() -> str:
    """A part of the ids of this test's events."""
    return f"n{uuid.uuid4().hex[:10]}"

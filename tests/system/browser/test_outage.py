"""While the bus is down, its pages report this soon and recover automatically; Flower's other pages keep working."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support.flower import QUICK, Browser, Flower, Site
from tests.support.proxy import Proxy


@pytest.fixture(scope="module")
def way(server: RedisServer) -> Iterator[Proxy]:
    """The connection from the Flower of these tests to the bus; its broker is reached directly."""
    with Proxy(server.port) as running:
        yield running


@pytest.fixture(scope="module")
def far(site: Site, way: Proxy) -> Flower:
    return site.flower("far", BRIDGE_REDIS_URL=way.url)


@pytest.fixture(params=["refuse", "blackhole"])
def outage(request: pytest.FixtureRequest, way: Proxy) -> Iterator[str]:
    yield request.param
    way.heal()


def test_the_pages_say_that_redis_is_away(
    site: Site, far: Flower, way: Proxy, browser: Browser, name: str, outage: str
) -> None:
    """While Redis refuses connections or does not reply, the pages report this within 10 s; then they recover."""
    site.bus.publish("dream.created", id=name)
    browser.open(f"{far.url}/events?search={name}&{QUICK}")
    browser.shows("#bridge-table", name[:8])
    getattr(way, outage)()
    browser.shows("#bridge-down", "Redis at redis://127.0.0.1")
    assert browser.text("#bridge-status") == "Update failed"
    browser.shows("#bridge-table", "No data: Redis does not answer.")
    began = time.monotonic()
    assert far.ask(f"/event/{name}").status == 503
    assert time.monotonic() - began < 10
    assert far.ask("/tasks").status == 200
    browser.open(f"{far.url}/event/{name}?{QUICK}")
    browser.shows("#bridge-down", "Redis at redis://127.0.0.1")
    browser.complaints()  # of the page with status 503
    way.heal()
    browser.shows("#bridge-tree", "tests.app.plain")
    browser.open(f"{far.url}/events?search={name}&{QUICK}")
    browser.shows("#bridge-table", name[:8], "SUCCESS")
    assert browser.text("#bridge-down") == ""


def test_a_button_says_that_redis_is_away(site: Site, far: Flower, way: Proxy, browser: Browser, name: str) -> None:
    """If Redis fails before an action is confirmed, or during it, the page reports this."""
    site.bus.publish("dream.created", id=name)
    browser.open(f"{far.url}/event/{name}?{QUICK}")
    browser.shows("#bridge-tree", "SUCCESS\ntests.app.plain")
    browser.open(f"{far.url}/event/{name}?autorefresh=0")
    browser.click("#bridge-replay")
    browser.shows("#bridge-confirm", "tests.app.plain")
    way.refuse()
    assert far.ask(f"/event/{name}/replay").status == 503
    browser.click("#bridge-yes")
    browser.shows(".alert-danger", "It is unknown whether this was done")
    browser.complaints()  # of the page with status 503
    way.heal()

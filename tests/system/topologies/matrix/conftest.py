"""The usual fixtures, on each combination of bus and broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from bridge import BridgeSettings
from bridge.redis.client import connect
from tests.support.apps import make_app
from tests.support.processes import Processes
from tests.system.topologies.sites import SITES, Site, Waiting


@pytest.fixture(scope="session", params=list(SITES))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Each combination, which is started once for all of its tests."""
    with SITES[request.param](tmp_path_factory.mktemp("certificates")) as running:
        yield running


@pytest.fixture
def settings(site: Site, prefix: str) -> BridgeSettings:
    loaded = BridgeSettings.load(redis_url=site.bus_url, channel_prefix=prefix, group="tests")
    site.admit(loaded)
    return loaded


@pytest.fixture
def client(settings: BridgeSettings) -> Iterator[Any]:
    """The bridge's own client, for its own keys."""
    with connect(settings) as own:
        yield own


@pytest.fixture
def app(site: Site, prefix: str) -> Iterator[Celery]:
    with make_app(site.broker_url, prefix) as made:
        yield made


@pytest.fixture
def waiting(site: Site, settings: BridgeSettings, prefix: str) -> Iterator[Waiting]:
    """The messages at the broker; none at the start of the test."""
    found = site.waiting(prefix)
    found.clear()
    yield found
    found.clear()


@pytest.fixture
def processes(tmp_path: Path, site: Site, settings: BridgeSettings, prefix: str) -> Iterator[Processes]:
    children = Processes(tmp_path, site.environment(prefix))
    yield children
    children.end()

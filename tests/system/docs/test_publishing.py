"""The programs of the page about web applications, run as they are on the page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.app import setup_default_app
from redis import Redis

from bridge import BridgeSettings
from bridge.storage.keys import Keys
from tests.support import ROOT
from tests.support.apps import make_app
from tests.support.walkthrough import texts_of

PAGE = (ROOT / "docs" / "guides" / "publishing.md").read_text()


def block_with(text: str) -> str:
    """Return the only block of Python on the page that contains a text."""
    (block,) = (found for found in texts_of(PAGE, "python") if text in found)
    return block


def run(block: str) -> dict[str, Any]:
    """Run a block; return the names that it defines."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, "docs/guides/publishing.md", "exec", dont_inherit=True), names)
    return names


@pytest.fixture(autouse=True)
def shop(settings: BridgeSettings, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """The application whose bus the programs use, also in other threads."""
    with make_app(settings.url, prefix) as app, setup_default_app(app):
        app.conf.update(bridge_redis_url=settings.url, bridge_channel_prefix=prefix, bridge_publish_timeout_s=0.5)
        app.set_current()
        monkeypatch.setattr("celery._state.default_app", app)
        yield app


def published(client: Redis, prefix: str) -> list[tuple[str, str]]:
    return [(one[b"type"].decode(), one[b"id"].decode()) for _, one in client.xrange(Keys(prefix).journal)]


def test_every_program_is_run_here() -> None:
    """The page has the three programs below and no other."""
    assert PAGE.count("```python") == 3


def test_a_request_is_repeated(client: Redis, prefix: str, shop: Celery) -> None:
    """A request that cannot publish returns 503; repeated, it publishes its event once."""
    place_order = run(block_with("BusUnavailable"))["place_order"]
    assert (place_order(1), place_order(1)) == (201, 201)
    assert published(client, prefix) == [("order.placed", "order-1-placed")]
    with make_app("memory://", prefix) as away:
        away.conf.update(bridge_redis_url="redis://127.0.0.1:1/0", bridge_publish_timeout_s=0.2)
        away.set_current()
        assert place_order(2) == 503


def test_fastapi(client: Redis, prefix: str) -> None:
    """The endpoint publishes in a thread, and returns the id of its event."""
    pytest.importorskip("fastapi")
    names = run(block_with("FastAPI"))
    assert names["api"].url_path_for("place", order_id="7") == "/orders/7"
    answer = asyncio.run(names["place"](7))
    assert published(client, prefix) == [("order.placed", answer["event"])]


def test_django(client: Redis, prefix: str) -> None:
    """The event is published at the commit, and not after a rollback."""
    django = pytest.importorskip("django")
    from django.conf import settings as of_django

    if not of_django.configured:
        memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        of_django.configure(DATABASES={"default": memory})
        django.setup()
    from django.db import transaction

    place = run(block_with("django.db"))["place"]
    with transaction.atomic():
        place(1)
        transaction.set_rollback(True)
    assert published(client, prefix) == []
    with transaction.atomic():
        place(2)
        assert published(client, prefix) == []
    assert published(client, prefix) == [("order.placed", "order-2-placed")]

"""Adding the pages to Flower; an incompatible Flower starts unchanged."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flower import app, command, urls
from tornado.web import Application, url

from bridge.flower import _with_tab, add_pages

flower = pytest.importorskip("flower")

NAVBAR = (Path(flower.__file__).parent / "templates" / "navbar.html").read_text()


@pytest.fixture
def unused() -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Flower's page table and settings as before its start; they are restored after the test."""
    assert app.default_handlers is urls.handlers  # both modules are imported before a test replaces the table
    assert command.settings is urls.settings
    pages, settings = list(urls.handlers), dict(urls.settings)
    yield urls.handlers, urls.settings
    urls.handlers[:] = pages
    urls.settings.clear()
    urls.settings.update(settings)


def test_pages_are_added_once(unused: tuple[list[Any], dict[str, Any]]) -> None:
    """The pages are inserted before Flower's catch-all page; adding them again changes nothing."""
    pages, settings = unused
    before = list(pages)
    assert add_pages()
    added = list(pages)
    assert add_pages()
    assert pages == added
    assert (added[: len(before) - 1], added[-1]) == (before[:-1], before[-1])
    ours = added[len(before) - 1 : -1]
    assert all(isinstance(page, url) and page.name.startswith("bridge-") for page in ours)
    application = Application(added)
    assert application.reverse_url("bridge-event", "a b?") == "/event/a%20b%3F"
    for name in ("tasks.html", "bridge_event.html", "bridge_events.html", "bridge_dead.html", "bridge_tree.html"):
        assert settings["template_loader"].load(name).name == name


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("flower.VERSION", (2, 3, 0), "tested with Flower 2.2.x"),
        ("flower.__version__", "3.0.1", "this is 3.0.1"),
        ("flower.urls.handlers", [], "in another place"),
        ("flower.command.settings", {}, "in another place"),
        ("flower.views.BaseHandler", None, ""),
    ],
)
def test_a_flower_that_does_not_fit_is_left_alone(
    unused: tuple[list[Any], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: object,
    why: str,
) -> None:
    """For another version or structure of Flower, one warning gives the reason, and nothing is changed."""
    pages, settings = unused
    before = list(pages), dict(settings)
    for module in ("views", "buttons", "base"):
        monkeypatch.delitem(sys.modules, f"bridge.flower.{module}", raising=False)
    monkeypatch.setattr(name, value)
    assert not add_pages()
    assert (pages, settings) == before
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith("Flower starts without the Events pages of the bridge: ")
    assert why in line.getMessage()


@pytest.mark.parametrize(
    "change", [lambda pages, _: pages.pop(), lambda _, settings: settings.update(template_loader=1)]
)
def test_a_flower_with_other_tables_is_left_alone(
    unused: tuple[list[Any], dict[str, Any]], caplog: pytest.LogCaptureFixture, change: Any
) -> None:
    """If Flower's page table or template loader is unexpected, there is one warning, and nothing is changed."""
    pages, settings = unused
    change(pages, settings)
    before = list(pages), dict(settings)
    assert not add_pages()
    assert (pages, settings) == before
    assert len(caplog.records) == 1


def test_the_tab_comes_after_the_brokers(caplog: pytest.LogCaptureFixture) -> None:
    """If the navigation bar has no broker tab, our tab is left out with one warning, and the pages still work."""
    with_tab = _with_tab(NAVBAR)
    assert with_tab.index("reverse_url('broker')") < with_tab.index("reverse_url('bridge-events')")
    assert with_tab.index("reverse_url('bridge-events')") < with_tab.index("app-nav-secondary")
    assert with_tab.count("<li") == with_tab.count("</li>")
    assert not caplog.records
    other = NAVBAR.replace("reverse_url('broker')", "reverse_url('queues')")
    assert _with_tab(other) == other
    assert "the Events pages have no tab" in caplog.text

"""README and guides, followed word for word in an empty folder, with the built wheel alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import ROOT
from tests.support.ports import free_port
from tests.support.processes import stops_worker
from tests.support.requirements import program
from tests.support.walkthrough import Walkthrough
from tests.support.wheel import Environment, install

Walk = Callable[..., Walkthrough]


class Page(NamedTuple):
    """One page, and what its handlers print, in any order: the effect that the reader is to see."""

    path: str
    effects: tuple[str, ...]


PAGES = [
    Page("README.md", ("charging 12.5 for o-1", "shipping o-1")),
    Page("docs/quickstart.md", ("charging 12.5 for o-1", "shipping o-1")),
]


@pytest.fixture(scope="session")
def for_readers(built_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What ``pip install`` installs on the pages: the wheel, its extras, and pytest."""
    environment = install(built_wheel, tmp_path_factory.mktemp("readers"), ["flower", "server"], "pytest")
    pip = environment.path / "bin" / "pip"  # everything is there; tests of the package look at what it requires
    pip.write_text('#!/bin/sh\n[ "$1" = install ]\n')
    pip.chmod(0o755)
    return environment


@pytest.fixture
def walk(for_readers: Environment, tmp_path: Path) -> Iterator[Walk]:
    """Start to follow a page in an empty folder, with an own address for the Redis of the application."""
    folder = tmp_path / "reader"
    folder.mkdir()
    started: list[Walkthrough] = []

    def start() -> Walkthrough:
        url = f"redis://localhost:{free_port()}/0"
        environment = for_readers.variables(REDIS_URL=url, CELERY_BROKER_URL=url, PYTHONWARNINGS="ignore")
        started.append(Walkthrough(folder, environment))
        return started[-1]

    yield start
    for one in started:
        one.end()


@stops_worker
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_a_reader_sees_what_a_page_promises(page: Page, walk: Walk) -> None:
    """Each command of the page succeeds and prints what is on the page, and each handler has its effect."""
    reader = walk()
    reader.follow((ROOT / page.path).read_text())
    reader.sees(*page.effects)


#: The pages of the tutorial, and what handlers print in each.
TUTORIAL = {
    "1-handlers.md": ("reserving 1 of", "charging", "receipt for", "audit: order.paid of chain"),
    "2-failures.md": ("no answer from payments.example", "charging", "receipt for"),
    "3-effects.md": ("signal 9", "receipt for"),
    "4-testing.md": (),
    "5-running.md": ("reserving 1 of",),
}


@pytest.mark.timeout(300)
def test_a_reader_builds_the_shop_of_the_tutorial(walk: Walk) -> None:
    """The five parts, one after the other in one folder: each command prints what is on the page."""
    reader = walk()
    for name, effects in TUTORIAL.items():
        reader.follow((ROOT / "docs" / "tutorial" / name).read_text())
        reader.sees(*effects)
        reader.end()


def npm_install(folder: Path, *packages: str) -> None:
    """Install packages from the npm registry; skip the test if it cannot be reached."""
    program("node")
    installing = [program("npm"), "install", "--no-fund", "--no-audit", *packages]
    done = subprocess.run(installing, cwd=folder, capture_output=True, text=True, timeout=50, check=False)
    if done.returncode:
        pytest.skip(f"the npm registry cannot be reached: {done.stderr[-200:]}")


#: The guides about handlers, and what these print.
GUIDES = {
    "payloads.md": ("booking 12.50 EUR for o-1", "booking 12.50 CHF for o-3"),
    "retries.md": ("entering invoice 2026-17",),
    "routing.md": ("rendering sales", "counting report.requested"),
    "replay.md": ("12 points for Ada", "24 points for Ada", "thanking Ada"),
    "migrate.md": ("the loop sends a mail about o-1", "the bridge sends a mail about o-2"),
}
#: The application that these pages assume.
SHOP = """
import bridge
from celery import Celery

app = Celery("shop", broker="redis://localhost:6379/0", include=["orders", "invoices", "reports", "points", "mailer"])
bridge.install(app)
"""


@pytest.mark.timeout(300)
def test_a_reader_follows_the_guides_about_handlers(walk: Walk) -> None:
    """One application has the modules of all these pages: each command prints what is on its page."""
    reader = walk()
    (reader.folder / "shop.py").write_text(SHOP)
    pages = {name: (ROOT / "docs" / "guides" / name).read_text() for name in GUIDES}
    for page in pages.values():
        reader.save_files(page)
    reader.type("celery -A shop bus dev --no-flower", "the worker is ready")
    for name, effects in GUIDES.items():
        reader.follow(pages[name])
        reader.sees(*effects)


@stops_worker
def test_the_publisher_and_the_further_handlers_of_the_readme(walk: Walk) -> None:
    """The Node program of README.md publishes an event, and the handlers that are added to ``shop.py`` run, too."""
    reader = walk()
    npm_install(reader.folder, "redis@5")
    reader.save_files((ROOT / "README.md").read_text())
    reader.type("celery -A shop bus dev --no-flower", "the worker is ready")
    reader.type("node publisher.mjs")
    reader.sees(
        "charging 5.0 for o-2", "shipping o-2", "mail about order.placed of chain", "mail about order.paid of chain"
    )


@stops_worker
def test_programs_in_other_languages_publish(walk: Walk) -> None:
    """With redis-cli, Node and PHP, as the guide has it, the handlers of the quickstart run for each event."""
    program("redis-cli")
    reader = walk()
    reader.save_files((ROOT / "docs" / "quickstart.md").read_text())
    reader.type("celery -A shop bus dev --no-flower", "the worker is ready")
    reader.follow((ROOT / "docs" / "guides" / "any-language.md").read_text())
    reader.sees("charging 12.5 for o-7", "shipping o-7")
    if shutil.which("php"):
        reader.type("php publisher.php")
        reader.sees("charging 7.5 for o-9", "shipping o-9")
    npm_install(reader.folder, "redis@5")
    reader.type("node publisher.mjs")
    reader.sees("charging 5.0 for o-8", "shipping o-8")

"""The wheel and the sdist: what is in them, and how they work where only the wheel is installed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support import ROOT
from tests.support.processes import stops_worker
from tests.support.waiting import eventually
from tests.support.wheel import Environment

SHOP = """
from pathlib import Path
from celery import Celery
from bridge import Event, install, on_event

app = Celery("shop")
install(app)

@on_event("order.placed")
def reserve(event: Event) -> None:
    Path("reserved").write_text(event.payload["order"])
"""
#: Imports all modules that need neither an extra nor a celeryconfig.py, and prints where the package is.
IMPORT_ALL = """
import pkgutil, bridge
for found in pkgutil.walk_packages(bridge.__path__, "bridge."):
    if not found.name.startswith(("bridge.flower.", "bridge.celery", "bridge.telemetry.otel")):
        __import__(found.name)
print(bridge.__file__, bridge.__version__)
"""


def tracked(folder: str) -> set[str]:
    """Return the files below *folder* that are under version control, or are about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(listed.stdout.splitlines())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """An empty folder with an application in one file."""
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def test_distributions_have_the_right_files(built_wheel: Path) -> None:
    """The wheel holds exactly the files of ``bridge/`` and its metadata, the sdist also what its tests need."""
    names = zipfile.ZipFile(built_wheel).namelist()
    ours = {name for name in names if not re.match(r"celery_event_bridge-[^/]+\.dist-info/", name)}
    assert ours == tracked("bridge")
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    (sdist,) = built_wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed >= tracked("bridge") | tracked("tests") | {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    assert not {name for name in packed if name.startswith((".venv", "dist/", "site/"))}


def test_distributions_pass_the_checks_of_the_index(built_wheel: Path) -> None:
    """``twine check`` and ``check-wheel-contents`` find nothing to complain about."""
    twine = ["twine", "check", "--strict", *built_wheel.parent.glob("celery*")]
    for check in (twine, ["check_wheel_contents", built_wheel]):
        done = subprocess.run([sys.executable, "-m", *check], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_links_of_the_project_page_lead_to_the_repository(built_wheel: Path) -> None:
    """On PyPI, where only README.md is shown, each of its links is absolute; those to files name existing files."""
    archive = zipfile.ZipFile(built_wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    page = message_from_string(archive.read(name).decode())
    source = next(url for url in page.get_all("Project-URL", []) if url.startswith("Source, ")).partition(", ")[2]
    text = str(page.get_payload())
    links = re.findall(r"\]\((?!#)([^)\s]+)\)", text)
    assert [link for link in links if not link.startswith("https://")] == []
    raw = source.replace("https://github.com", "https://raw.githubusercontent.com")
    to_files = re.compile(rf"(?:{source}/blob|{raw})/v{page['Version']}/([^#]+)")
    files = [found[1] for link in links if (found := to_files.match(link))]
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert files


def test_wheel_works_without_extras(installed_without_extras: Environment, shop: Path) -> None:
    """Without extras, all modules except those for Flower and OpenTelemetry load without warnings; commands work."""
    alone = installed_without_extras
    output = alone.run(alone.python, "-I", "-W", "error", "-c", IMPORT_ALL, cwd=shop)
    where, version = output.split()
    assert Path(where).is_relative_to(alone.path)
    assert version in str(next(alone.packages.glob("celery_event_bridge-*.dist-info")))
    assert "trace" in alone.run("celery", "-A", "shop", "bus", "--help", cwd=shop)
    with pytest.raises(AssertionError, match="No module named 'flower'"):
        alone.run(alone.python, "-c", "import flower", cwd=shop)


@stops_worker
def test_wheel_runs_handlers(
    installed_without_extras: Environment, shop: Path, server: RedisServer, prefix: str
) -> None:
    """In an empty folder, ``bus dev`` runs the handler of an application in one file."""
    alone = installed_without_extras
    variables = alone.variables(REDIS_URL=server.url, BRIDGE_CHANNEL_PREFIX=prefix)
    with (shop / "dev.log").open("w") as log:
        command = [alone.celery, "-A", "shop", "bus", "dev", "--no-flower", "-c", "1"]
        dev = subprocess.Popen(command, cwd=shop, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        publish = ["celery", "-A", "shop", "bus", "publish", "order.placed", '{"order": "o-1"}']
        alone.run(*publish, cwd=shop, REDIS_URL=server.url, BRIDGE_CHANNEL_PREFIX=prefix)
        reserved = shop / "reserved"
        eventually(lambda: reserved.exists() and reserved.read_text() == "o-1", "the handler runs")
    finally:
        dev.send_signal(signal.SIGINT)
        status = dev.wait(60)
        sys.stdout.write((shop / "dev.log").read_text())  # pytest shows it if the test failed
    assert status == 0

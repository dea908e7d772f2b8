"""A version of Flower that does not support the bridge's pages."""

from __future__ import annotations

import sys

import pytest

from tests.support.flower import Flower
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

flower = pytest.importorskip("flower")
#: Starts Flower with another version number.
OF_VERSION = """
import sys, flower
flower.__version__ = sys.argv.pop(1)
flower.VERSION = tuple(map(int, flower.__version__.split(".")))
from celery.__main__ import main
main()
"""


def test_another_version_of_flower_starts_unchanged(processes: Processes) -> None:
    """A Flower that reports version 2.3.0 starts with only its own pages and logs one warning."""
    started = Flower(free_port())
    listen = [f"--port={started.port}", "--address=127.0.0.1"]
    processes.start(sys.executable, "-c", OF_VERSION, "2.3.0", "-A", "tests.app", "flower", *listen, name="flower")
    eventually(started.is_up, "Flower responds", 30)
    assert started.ask("/events").status == 404
    page = started.ask("/tasks")
    assert page.status == 200
    assert "Events" not in page.body
    log = processes.log("flower")
    assert log.count("without the Events pages") == 1
    assert "tested with Flower 2.2.x, this is 2.3.0" in log

"""Prometheus can read the metrics."""

from __future__ import annotations

import subprocess

from bridge import EventBus
from tests.support.apps import StartSubscriber
from tests.support.requirements import program
from tests.support.scrape import Scrape
from tests.support.waiting import eventually


def test_promtool_accepts_them(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, port: int, scrape: Scrape
) -> None:
    """The linter of Prometheus reports no problem with the metrics."""
    promtool = program("promtool")
    register_handlers("t.exact")
    start_subscriber(metrics_port=port)
    bus.publish("dream.created")
    eventually(lambda: scrape().events("dispatched"), "an event is dispatched", 5)
    command = [str(promtool), "check", "metrics"]
    checked = subprocess.run(command, input=scrape().text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")

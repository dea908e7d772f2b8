"""No process starts if pickle is accepted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.processes import Processes
from tests.support.waiting import eventually


@pytest.mark.parametrize("command", [("worker", "-P", "solo", "--no-subscriber"), ("worker",), ("bus", "subscribe")])
def test_nothing_starts_with_pickle(processes: Processes, tmp_path: Any, command: tuple[str, ...]) -> None:
    """Workers, with and without a subscriber, and ``bus subscribe`` exit at once and log the reason."""
    (tmp_path / "pickled_app.py").write_text("from tests.app import app\napp.conf.accept_content = ['pickle']\n")
    process = processes.celery(*command, app="pickled_app", PYTHONPATH=f"{tmp_path}:.")
    eventually(lambda: process.poll() is not None, "it exits")
    assert process.returncode != 0
    assert "accept_content allows pickle" in processes.log("celery")

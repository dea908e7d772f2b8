"""Projects as the documentation of Flask, Django and FastAPI has them, with the bridge: handlers run at the first try.

Each is served by the framework's own server and has one worker, both started in the folder of the project.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support.processes import Processes, environment_on
from tests.support.waiting import eventually

FOLDER = Path(__file__).parent


@dataclass
class Project:
    """A project and what its documentation says to start.

    Arguments:
        app: What ``celery -A`` names.
        server: Command of the server, to which the port is added.
        prepare: Command that is executed before.
        effects: What the handlers have added to an order in the end.
    """

    app: str
    server: tuple[str, ...]
    effects: dict[str, Any]
    prepare: tuple[str, ...] = ()


PROJECTS = {
    "flask": Project(
        "make_celery", ("-m", "flask", "--app", "task_app", "run", "--port"), {"confirmed_by": "Corner shop"}
    ),
    "django": Project(
        "proj",
        ("manage.py", "runserver", "--noreload"),
        {"confirmed_by": "the shop", "reserved": True},
        ("manage.py", "migrate"),
    ),
    "fastapi": Project("shop.worker", ("-m", "uvicorn", "shop.main:app", "--port"), {"confirmed_by": "shop"}),
}


@pytest.fixture
def processes(tmp_path: Path, own_server: RedisServer, prefix: str) -> Iterator[Processes]:
    """Start processes of a project, which has a Redis for itself: the documentation has no prefix for its queues."""
    database = str(tmp_path / "shop.sqlite3")
    of_flask = {"FLASK_CELERY__broker_url": own_server.url, "FLASK_CELERY__result_backend": own_server.url}
    environment = environment_on(own_server, prefix) | of_flask | {"DATABASE": database, "FLASK_DATABASE": database}
    with Processes(tmp_path, environment) as children:
        yield children


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """Send a GET request, or a POST request with a *body*, and return the answer."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=10
    ) as answer:
        return json.load(answer)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("framework", PROJECTS)
def test_a_request_publishes_an_event_and_its_handlers_run(processes: Processes, port: int, framework: str) -> None:
    """An order is posted; the handlers use configuration and database of the framework, as one sees in the order."""
    project, folder = PROJECTS[framework], FOLDER / f"{framework}_project"
    if project.prepare:
        assert processes.start(sys.executable, *project.prepare, name="prepare", cwd=folder).wait(60) == 0
    celery = ("-m", "celery", "-A", project.app, "worker", "-c", "2", "-l", "INFO", "--without-mingle")
    worker = processes.start(sys.executable, *celery, name="worker", cwd=folder)
    processes.start(sys.executable, *project.server, str(port), name="server", cwd=folder)
    orders = f"http://127.0.0.1:{port}/orders/"

    def posted() -> Any:
        with suppress(urllib.error.URLError):  # the server is not ready yet
            return ask(orders, {"total": 5})

    order_id = eventually(posted, "the server accepts an order", 40)["id"]
    expected = {"id": order_id, "total": 5} | project.effects
    eventually(lambda: ask(f"{orders}{order_id}/") == expected, f"the order is {expected}", 40)
    assert worker.poll() is None
    assert "dead letter" not in processes.log("worker")

"""What a worker does at its start: the queues that it takes, what it prints, and what ends it with one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.testing.redis_server import RedisServer
from tests.support import ROOT
from tests.support.processes import Processes
from tests.support.waiting import eventually

#: Prints, for each case, the queues that a worker takes. It is not started, and there is no broker.
QUEUES = """
import json, sys
from celery import Celery
from kombu import Queue
import bridge

def handle(event: bridge.Event) -> None: ...

bridge.on_event("a.b", name="t.one", queue="orders")(handle)
bridge.on_event("c.d", name="t.two")(handle)
bridge.on_event("e.f", "g.*", name="t.three")(handle)
CASES = {
    "default": ({}, {}),
    "-Q": ({}, {"queues": "x,celery"}),
    "-X": ({}, {"exclude_queues": ["orders"]}),
    "task_queues": ({"task_queues": [Queue("celery"), Queue("other")]}, {}),
    "routes": ({"task_routes": {"t.two": "second"}, "bridge_routes": {"g.h": {"queue": "third"}}}, {}),
    "default queue": ({"task_default_queue": "main"}, {}),
    "worker_direct": ({"worker_direct": True}, {}),
    "no missing queues": ({"task_create_missing_queues": False}, {}),
    "exchange": ({"bridge_routes": {"e.f": {"exchange": "ex", "routing_key": "k"}}}, {}),
    "--no-subscriber": ({}, {"no_subscriber": True}),
}
found = {}
for name, (conf, options) in CASES.items():
    app = Celery("shop", broker="redis://127.0.0.1:1/0")
    app.conf.update(conf)
    bridge.install(app)
    app.Worker(hostname="w@h", pool_cls="solo", quiet=True, **options)
    found[name] = sorted(app.amqp.queues.consume_from)
sys.stdout.write(json.dumps(found))
"""
TAKEN = {
    "default": ["celery", "orders"],
    "-Q": ["celery", "x"],
    "-X": ["celery"],
    "task_queues": ["celery", "other"],
    "routes": ["celery", "orders", "second", "third"],
    "default queue": ["main", "orders"],
    "worker_direct": ["celery", "orders", "w@h.dq2"],
    "no missing queues": ["celery"],
    "exchange": ["celery", "orders"],
    "--no-subscriber": ["celery", "orders"],
}

#: Runs the command of Celery as in a folder without a project: that of these tests has a celeryconfig.py.
ELSEWHERE = f"""
import sys
import bridge
sys.path = [path for path in sys.path if path not in ("", {str(ROOT)!r})]
from celery.__main__ import main
main()
"""
SHOP = """
import os
from celery import Celery
import bridge
app = Celery(os.environ.get("NAME", "shop"))
bridge.install(app)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def run(folder: Path, *arguments: str, code: str = ELSEWHERE, **environment: str) -> subprocess.CompletedProcess[str]:
    around = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=folder,
        env=around | {"C_FORCE_ROOT": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_queues_that_a_worker_takes(tmp_path: Path) -> None:
    """Without -Q and task_queues, a worker takes the queues of its handlers, too, except those of -X."""
    done = run(tmp_path, code=QUEUES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == TAKEN


@pytest.mark.parametrize("command", ["worker", "flower", "bus status", "bus dev"])
def test_the_example_application_outside_its_project(elsewhere: Path, command: str) -> None:
    """Without a celeryconfig.py, the command says in one sentence what is missing, and no traceback."""
    done = run(elsewhere, "-A", "bridge", *command.split())
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("celery -A bridge runs the example application, which needs a celeryconfig.py")
    assert len(done.stderr.splitlines()) == 1


def test_an_error_in_the_configuration_of_the_example_application(elsewhere: Path) -> None:
    """A module that celeryconfig.py fails to import is named with the traceback, and not taken for the file itself."""
    (elsewhere / "celeryconfig.py").write_text("import missing_module")
    done = run(elsewhere, "-A", "bridge", "worker")
    assert "No module named 'missing_module'" in done.stderr
    assert f"{elsewhere}/celeryconfig.py" in done.stderr


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "Error: the bus has no address, and application shop has no broker: set broker_url"),
        ({"REDIS_URL": "redis://127.0.0.1:1", "BRIDGE_BATCH_SIZE": "x"}, "Error: batch_size: Input should be a valid"),
        (
            {"CELERY_BROKER_URL": "redis://127.0.0.1:1", "NAME": "__main__"},
            "Error: this Celery application has no name",
        ),
    ],
    ids=["no address", "invalid setting", "no name"],
)
def test_settings_that_end_a_worker(elsewhere: Path, environment: dict[str, str], text: str) -> None:
    """The worker ends with one line that says what to set."""
    done = run(elsewhere, "-A", "shop", "worker", **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(text)
    assert len(done.stderr.splitlines()) == 1


def test_what_a_worker_prints(processes: Processes, server: RedisServer, prefix: str) -> None:
    """Below Celery's banner, a worker shows bus, group and handlers; with --quiet, neither. No password is shown."""
    command = ("worker", "-c", "1", "--without-mingle", "-P", "solo")
    login = server.url.replace("redis://", "redis://:s3cret@")
    processes.celery(*command, "-n", "w1@test", name="shown", BRIDGE_REDIS_URL=login)
    processes.celery("-q", *command, "-n", "w2@test", name="quiet")
    eventually(lambda: "[handlers]" in processes.log("shown"), "the worker has printed its handlers", 30)
    banner = processes.log("shown")
    for line in (f"address:     {server.url}", f"prefix:      {prefix}", "group:       tests", "subscriber:  yes"):
        assert f".> {line}\n" in banner
    assert "s3cret" not in banner
    assert any(
        line.split() == [".>", "tests.app.elsewhere", "routed.elsewhere", "->", "elsewhere"]
        for line in banner.splitlines()
    )
    eventually(lambda: "appendonly of the bus" in processes.log("quiet"), "the other worker runs", 30)
    assert "[handlers]" not in processes.log("quiet")


def test_a_worker_without_a_broker(processes: Processes, elsewhere: Path, server: RedisServer) -> None:
    """With an address of the bus and no broker, the first line says why Celery tries to reach RabbitMQ."""
    processes.start(
        *(sys.executable, "-c", f"import os; os.chdir({str(elsewhere)!r}); del os.environ['REDIS_URL']; {ELSEWHERE}"),
        *("-A", "shop", "worker", "-P", "solo"),
        name="shop",
        BRIDGE_REDIS_URL=server.url,
    )
    text = "broker_url: not set, so Celery uses RabbitMQ on this machine"
    eventually(lambda: "Cannot connect to amqp://" in processes.log("shop"), "Celery has tried it", 30)
    log = processes.log("shop")
    assert 0 < log.index(text) < log.index("Cannot connect to amqp://")

"""JSON logs of real processes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge import EventBus
from bridge.handlers.handler import task_id_for
from bridge.testing.redis_server import RedisServer
from tests.support.processes import STOP_S, Processes, stops_worker
from tests.support.waiting import eventually

SECRET = "s3cret-payload"
#: Python's own warnings, which precede a worker's logging setup, are off.
JSON = {"BRIDGE_LOG_FORMAT": "json", "PYTHONWARNINGS": "ignore"}


# Real processes


def lines(text: str) -> list[dict[str, Any]]:
    """Parse every line as JSON, except those that Celery prints to standard output when it stops."""
    return [json.loads(line) for line in text.splitlines() if line and not line.startswith("worker: ")]


@pytest.fixture
def bus(server: RedisServer, prefix: str) -> Iterator[EventBus]:
    with EventBus(redis_url=server.url, channel_prefix=prefix) as connected:
        yield connected


@stops_worker
def test_a_worker_writes_json_only(processes: Processes, bus: EventBus) -> None:
    """Lines of the bridge, of Celery and of pool processes are JSON; a dead letter's line has the event's fields."""
    worker = processes.worker("w1", **JSON)
    bus.publish("failing.created", {"password": SECRET}, id="f1", source="users")
    bus.publish("typed.created", {"dreamId": SECRET}, id="t1")

    def told() -> bool:
        bus.client.publish(f"{bus.settings.channel_prefix}no.json", SECRET)  # the first messages may not be received
        return processes.log("w1").count('"dead_letter"') == 3

    eventually(told, "three dead letters are logged")
    worker.terminate()
    worker.wait(STOP_S)
    text = processes.log("w1")
    written = lines(text)
    dead = {one["reason"]: one for one in written if one.get("action") == "dead_letter"}
    failed = dead["failure"]
    assert failed["event_id"] == "f1"
    assert failed["event_type"] == "failing.created"
    assert failed["task_id"] == task_id_for("tests", "f1", "tests.app.failing")
    assert failed["handler"] == "tests.app.failing"
    assert failed["group"] == "tests"
    assert failed["process"].startswith("ForkPoolWorker-")
    assert dead["payload"]["event_id"] == "t1"
    assert dead["json"]["origin"].endswith("no.json")
    received = [one for one in written if one["logger"] == "celery.worker.strategy"]
    assert {one["task_name"] for one in received} == {"tests.app.failing", "tests.app.typed"}
    assert [one["task_id"] for one in written if "RuntimeError" in one.get("exception", "")] == [failed["task_id"]]
    assert {"subscriber_started", "group_created"} <= {one.get("action") for one in written}
    assert SECRET not in text


def test_a_worker_writes_json_to_its_log_file(processes: Processes, bus: EventBus, tmp_path: Path) -> None:
    """``--logfile`` works as before, for the worker and for its pool processes."""
    log = tmp_path / "file.log"
    processes.worker("w1", f"--logfile={log}", **JSON)
    bus.publish("failing.created", id="f1")
    eventually(lambda: log.exists() and '"dead_letter"' in log.read_text(), "the dead letter is logged")
    assert {"MainProcess", "ForkPoolWorker"} <= {one["process"].partition("-")[0] for one in lines(log.read_text())}
    assert processes.log("w1") == ""


def test_a_subscriber_writes_json(processes: Processes) -> None:
    """``bus subscribe`` writes JSON until it exits."""
    subscriber = processes.celery("bus", "subscribe", name="s1", **JSON)
    eventually(lambda: "subscriber_started" in processes.log("s1"), "the subscriber has started")
    subscriber.terminate()
    assert subscriber.wait(20) == 0
    assert "subscriber_stopping" in [one["action"] for one in lines(processes.log("s1"))]


def test_text_is_as_ever(processes: Processes, bus: EventBus) -> None:
    """Without the setting, a worker shows its banner and uses Celery's format; the fields are not shown."""
    processes.worker("w1")
    bus.publish("failing.created", id="f1")
    eventually(
        lambda: "(tests.app.failing) ended in a dead letter (failure)" in processes.log("w1"),
        "the dead letter is logged",
    )
    text = processes.log("w1")
    assert "[config]" in text
    line = r"Task [-\w]+ \(tests\.app\.failing\) ended in a dead letter \(failure\), event f1 \(failing\.created\): "
    assert re.search(rf"^\[[-\d]+ [:,\d]+: WARNING/ForkPoolWorker-\d\] {line}RuntimeError", text, re.MULTILINE)
    assert '"action"' not in text

"""A real Flower with a real worker: what its pages, API and metrics show of events and of the bridge."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from redis import Redis

from bridge import EventBus
from bridge.handlers.handler import task_id_for
from bridge.testing.redis_server import RedisServer
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.requirements import missing
from tests.support.waiting import eventually

WORKER = "w1@test"
#: In every payload of these tests; no part of a payload may reach a monitor.
SECRET = "s3cret-dream"


class Flower:
    """Requests to a running Flower."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def page(self, path: str) -> str:
        """Return the body of a page; empty while Flower does not respond or does not have the page."""
        try:
            with urlopen(self._address + path, timeout=10) as response:
                return response.read().decode()
        except HTTPError as error:
            error.close()
            return ""
        except OSError:
            return ""

    def json(self, path: str) -> dict[str, Any]:
        """Return the response of the API; empty if the request failed."""
        return json.loads(self.page(path) or "{}")

    def bridge_counters(self) -> dict[str, Any]:
        workers = self.json(f"/api/workers?refresh=true&workername={WORKER}")
        return workers.get(WORKER, {}).get("stats", {}).get("bridge", {})

    def wait_for_state(self, state: str, *task_ids: str) -> dict[str, dict[str, Any]]:
        """Wait until these tasks are in the state; return them by id."""

        def reached() -> dict[str, Any] | None:
            tasks = self.json("/api/tasks")
            there = {task_id: tasks[task_id] for task_id in task_ids if task_id in tasks}
            return there if [task["state"] for task in there.values()] == [state] * len(task_ids) else None

        return eventually(reached, f"{task_ids} are in state {state}")

    def counted(self, event_type: str, task_name: str) -> float:
        """Return the value of ``flower_events_total`` for a type of worker event and a task."""
        labels = f'task="{task_name}",type="{event_type}",worker="{WORKER}"'
        found = re.search(rf"^flower_events_total\{{{re.escape(labels)}\}} (\S+)$", self.page("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture
def bus(server: RedisServer, prefix: str) -> Iterator[EventBus]:
    with EventBus(redis_url=server.url, channel_prefix=prefix) as connected:
        yield connected


@pytest.fixture
def flower(processes: Processes) -> Flower:
    """A Flower that has received events from worker ``w1`` and will receive all further ones."""
    if importlib.util.find_spec("flower") is None:
        missing("flower")
    port = free_port()
    listen = [f"--port={port}", "--address=127.0.0.1"]
    processes.celery("flower", *listen, name="flower", FLOWER_UNAUTHENTICATED_API="true")
    processes.worker("w1", "-Q", "celery")  # not the queue "elsewhere"
    running = Flower(port)
    eventually(lambda: running.json("/api/workers?status=true").get(WORKER), "Flower knows the worker", 30)
    return running


def test_the_worker_page_shows_the_counters_of_the_bridge(flower: Flower, bus: EventBus) -> None:
    """Flower lists the worker, and its API and the worker's page show the bridge's section with the counters."""
    bus.publish("dream.created", {"text": SECRET}, id="x")
    bus.publish("nobody.listens", {"text": SECRET}, id="y")
    eventually(lambda: flower.bridge_counters().get("dispatched") == 2, "two dispatches are counted")
    counters = eventually(
        lambda: (now := flower.bridge_counters()).get("no_handler") and now, "an event without a handler is counted"
    )
    assert (counters["group"], counters["state"], counters["dispatched"]) == ("tests", "ready", 2)
    assert counters["consumer"].startswith(f"{WORKER}:")
    assert WORKER in flower.page("/workers")
    page = flower.page(f"/worker/{WORKER}")
    assert re.search(r"<td>bridge</td>\s*<td[^>]*>[^<]*dispatched[^<]*: 2\b", page), "the tab Other shows it"
    assert SECRET not in page


def test_tasks_are_listed_by_their_events_and_misfits_as_deadlettered(flower: Flower, bus: EventBus) -> None:
    """Each handler is a task whose arguments name the event without its payload; an invalid payload is DEADLETTERED."""
    bus.publish("dream.created", {"text": SECRET}, id="short")
    bus.publish("dream.created", {"text": SECRET}, id="0123456789abcdef")
    bus.publish("typed.created", {"dreamId": SECRET}, id="misfit")
    names = ["tests.app.plain", "tests.app.glob"]
    short, long = ([task_id_for("tests", i, name) for name in names] for i in ("short", "0123456789abcdef"))
    shown = flower.wait_for_state("SUCCESS", *short, *long)
    assert [shown[task_id]["name"] for task_id in short] == names
    assert {shown[task_id]["args"] for task_id in short} == {"(<Event dream.created short>,)"}
    assert {shown[task_id]["args"] for task_id in long} == {"(<Event dream.created 0123456789abcdef>,)"}
    parked = task_id_for("tests", "misfit", "tests.app.typed")
    task = flower.wait_for_state("DEADLETTERED", parked)[parked]
    assert (task["name"], task["args"]) == ("tests.app.typed", "(<Event typed.created misfit>,)")
    eventually(lambda: flower.counted("task-deadlettered", "tests.app.typed") == 1, "the dead letter is counted")
    page = flower.page(f"/task/{parked}")
    assert "DEADLETTERED" in page
    assert "(&lt;Event typed.created misfit&gt;,)" in page
    assert SECRET not in page + flower.page("/api/tasks")


def test_a_second_delivery_is_counted_and_the_task_stays_successful(
    flower: Flower, bus: EventBus, client: Redis, prefix: str
) -> None:
    """A task message that is delivered again is counted as ``task-deduplicated``, and its task stays in SUCCESS."""
    name = "tests.app.elsewhere"
    task_id = task_id_for("tests", "twice", name)
    bus.publish("routed.elsewhere", {"text": SECRET}, id="twice")
    waiting = f"broker:{prefix}elsewhere"  # no worker consumes this queue, so the message stays there
    message = eventually(lambda: client.lindex(waiting, 0), "the task message is queued")
    client.lpush(f"broker:{prefix}celery", message)
    flower.wait_for_state("SUCCESS", task_id)
    assert flower.counted("task-deduplicated", name) == 0
    client.lpush(f"broker:{prefix}celery", message)
    eventually(lambda: flower.counted("task-deduplicated", name) == 1, "the second copy is counted")
    assert flower.counted("task-succeeded", name) == 1
    flower.wait_for_state("SUCCESS", task_id)

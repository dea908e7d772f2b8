"""A worker runs tasks on each arrangement of bus and broker."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.storage import Storage
from tests.support.processes import STOP_S, stops_worker
from tests.support.waiting import eventually
from tests.system.topologies.sites import Site, effects_of

# With a real worker


@pytest.fixture
def effects(site: Site, prefix: str) -> Any:
    """The effects of the handlers of ``tests/app.py``."""
    return lambda: sorted(value.decode() for value in site.client.lrange(effects_of(prefix), 0, -1))


@stops_worker
def test_a_worker(
    processes: Any, site: Site, bus: EventBus, client: Redis, settings: BridgeSettings, prefix: str, waiting, effects
) -> None:
    """Tasks run once, publish events that run tasks, become dead letters, and retry; the worker stops in order."""
    bus.publish("dream.created", id="early")
    worker = processes.worker()
    eventually(lambda: {"plain early", "glob early"} <= set(effects()), "the tasks of an early event have run", 40)
    site.shout(prefix, Event(type="dream.created", id="foreign"))
    bus.publish("bound.created", id="chain")
    bus.publish("failing.created", id="m")
    letters = Storage(client, settings).dead_letters
    (letter,) = eventually(lambda: letters.latest(10), "there is a dead letter")
    assert (letter.reason, letter.task_id) == ("failure", task_id_for("tests", "m", "tests.app.failing"))
    expected = {"plain early", "glob early", "plain foreign", "glob foreign", "bound 0", "bound 1", "bound 2"}
    eventually(lambda: expected < set(effects()), "the tasks of each event have run")
    (step,) = eventually(
        lambda: [one for one in effects() if one.startswith("step ")], "the task at the end of the chain has run"
    )
    assert effects() == sorted([*expected, step])
    worker.terminate()
    assert worker.wait(STOP_S) == 0
    assert processes.log("w1").count("Traceback") == 1, "the traceback of the task that failed"

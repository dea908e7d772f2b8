"""A process that ends as planned while the bus is away leaves no task whose end is not recorded."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.processes import STOP_S, Processes, stops_worker
from tests.support.waiting import eventually

#: A worker without running tasks stops in this time, even under load.
LONGER_THAN_A_STOP_S = 4.0
#: The arguments of the worker, the handler, whether the worker receives SIGTERM, and what it logs before.
STOPS: dict[str, tuple[tuple[str, ...], str, bool, str]] = {
    "pool process replaced": (("--max-tasks-per-child", "1"), "waiting.none", False, "Could not record the end"),
    "prefork": ((), "waiting.none", True, "Could not record the end"),
    "threads": (("-P", "threads"), "waiting.none", True, "Could not record the end"),
    "solo": (("-P", "solo"), "waiting.none", True, "Could not record the end"),
    "killed by its limit": ((), "interrupted.hard", True, "Hard time limit (2s) exceeded"),
}


@stops_worker
@pytest.mark.parametrize("stop", STOPS)
def test_the_end_of_a_task_is_recorded_before_its_process_ends(
    stop: str, processes: Processes, own_server: RedisServer, prefix: str, client: Redis
) -> None:
    """The bus is away when a handler ends, and the worker or its pool process stops: the handler does not run again."""
    arguments, handler, terminated, line = STOPS[stop]
    environment = processes.with_bus_apart(own_server) | {"BRIDGE_LEASE_S": "1"}
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="freezing")
    command = ("worker", "--without-mingle", "-c", "2", "-n", "w1@test", "-l", "INFO")
    with EventBus(settings) as bus:
        bus.publish(handler, id="e")
        worker = processes.celery(*command, *arguments, app="tests.freezing", name="w1", **environment)
        eventually(lambda: client.llen(f"{prefix}runs"), "the handler runs")
        own_server.kill()
        client.set(f"{prefix}go-on", 1)
        eventually(lambda: line in processes.log("w1"), f"it is logged: {line}")
        if terminated:
            worker.send_signal(signal.SIGTERM)
            eventually(lambda: "Warm shutdown" in processes.log("w1"), "the worker stops")
            deadline = time.monotonic() + LONGER_THAN_A_STOP_S
            eventually(lambda: time.monotonic() > deadline, "a worker without such tasks has stopped")
            assert worker.poll() is None
        own_server.start()
        if terminated:
            assert worker.wait(STOP_S) == 0
        done = Storage(bus.client, settings).keys.done(task_id_for("freezing", "e", handler))
        eventually(lambda: bus.client.exists(done), "the end is recorded")
        if terminated:
            processes.celery(*command, app="tests.freezing", name="w2", **environment)
            eventually(lambda: "ready." in processes.log("w2"), "another worker is ready")
        left = (f"broker:{prefix}unacked", f"broker:{prefix}celery")
        eventually(lambda: not client.exists(*left), "no message is left")
        assert Counter(client.lrange(f"{prefix}runs", 0, -1)) == {handler.encode(): 1}

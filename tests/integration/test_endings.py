"""Every way in which a handler can end, with every kind of hooks, in every pool: one run, and one dead letter."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress

import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.config import BridgeSettings
from bridge.handlers.handler import task_id_for
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.endings import HOOKS, LIMITED, LIMITED_HOOKS, WAYS
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

NO_RESULTS = {"TEST_RESULTS": f"redis://127.0.0.1:{free_port()}/0"}
POOLS = {
    "prefork": (("-P", "prefork"), {}),
    "solo": (("-P", "solo"), {}),
    "threads": (("-P", "threads"), {}),
    "prefork without results": (("-P", "prefork"), NO_RESULTS),
    "threads without results": (("-P", "threads"), NO_RESULTS),
}


def task_of(event_type: str) -> str:
    way, _, hooks = event_type.partition(".")
    return f"{hooks}.{way}"


def unacknowledged(client: Redis, prefix: str) -> list[str]:
    """Return the tasks whose messages a worker holds."""
    return [json.loads(raw)[0]["headers"]["task"] for raw in client.hvals(f"broker:{prefix}unacked")]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("pool", POOLS)
def test_each_handler_runs_once_and_ends_at_once(
    pool: str, processes: Processes, server: RedisServer, prefix: str, client: Redis
) -> None:
    """However a handler ends and whatever the hooks do, it runs once and leaves the dead letter that is due."""
    arguments, environment = POOLS[pool]
    ends = {f"{way}.{hooks}": end for way, end in WAYS.items() for hooks in HOOKS}
    if "prefork" in pool:
        ends |= {f"{way}.{hooks}": end for way, end in LIMITED.items() for hooks in LIMITED_HOOKS}
    expected = {name: (runs, reason) for name, (_, _, runs, reason) in ends.items()}
    expected["ok.not_starting"] = (0, "failure")
    with EventBus(BridgeSettings.load(redis_url=server.url, channel_prefix=prefix, group="endings")) as bus:
        bus.publish_many([Event(type=name, id=name, payload={}) for name in expected])
        command = ("worker", "-c", "4", *arguments, "--without-mingle", "-n", "w1@test", "-l", "INFO")
        # If a pool process dies before the main process knows that it has begun, Celery starts the task in another one.
        # That copy waits for the lease, as a message with a delay.
        worker = processes.celery(*command, app="tests.endings", name="w1", BRIDGE_LEASE_S="5", **environment)
        storage = Storage(client, bus.settings)

        done = [storage.keys.done(task_id_for("endings", name, task_of(name))) for name in expected]
        eventually(lambda: client.exists(*done) == len(done), "all tasks have ended", 90)
        runs = Counter(one.decode() for one in client.lrange(f"{prefix}runs", 0, -1))
        letters = Counter((one.event_type, one.reason) for one in storage.dead_letters.latest(1000))
        assert runs == Counter({name: runs for name, (runs, _) in expected.items() if runs})
        assert letters == Counter({(name, reason): 1 for name, (_, reason) in expected.items() if reason})
        with suppress(pytest.fail.Exception):  # Celery waits 10 s for the result of a process that has died
            eventually(lambda: not unacknowledged(client, prefix), "all messages are acknowledged", 45)
        assert unacknowledged(client, prefix) == []
        if environment:
            assert "Connection refused" in processes.log("w1")
        assert worker.poll() is None

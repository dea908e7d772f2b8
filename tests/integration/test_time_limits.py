"""Time limits measure the handler: a bus that hangs before or after it makes no dead letter and repeats no effect."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.freezing import LIMITS
from tests.support.processes import Processes
from tests.support.waiting import eventually

#: When the bus hangs; the handlers; the line with which the hard time limit is logged then; how often each handler
#: runs; reasons of dead letters.
PHASES = {
    "before the handler": ("waiting", "waited for the bus until its time limit", 1, {}),
    "in the handler": (
        "interrupted",
        "Hard time limit (2s) exceeded for interrupted.hard",
        1,
        {"interrupted.soft": "failure", "interrupted.hard": "failure"},
    ),
    "after the handler": ("waiting", "succeeded, but the record of its end waited for the bus", 1, {}),
    "after a retry": ("retried", "(retried.hard) is retried, but releasing its lease waited for the bus", 2, {}),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_bus_that_hangs_is_not_the_fault_of_the_handler(
    phase: str, processes: Processes, own_server: RedisServer, prefix: str, client: Redis
) -> None:
    """While the bus hangs, both limits are exceeded. Each try runs once, and a task fails only if its handler was
    interrupted.
    """
    handler, struck, times, reasons = PHASES[phase]
    environment = processes.with_bus_apart(own_server) | {"BRIDGE_LEASE_S": "1"}
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="freezing")
    names = [f"{handler}.{limit}" for limit in LIMITS]

    def start_worker() -> None:
        command = ("worker", "--no-subscriber", "--without-mingle", "-c", "3", "-n", "w1@test", "-l", "INFO")
        processes.celery(*command, app="tests.freezing", name="w1", **environment)

    def runs() -> Counter[str]:
        return Counter(one.decode() for one in client.lrange(f"{prefix}runs", 0, -1))

    with EventBus(settings) as bus:
        processes.celery("bus", "subscribe", app="tests.freezing", name="subscribe", **environment)
        bus.publish_many([Event(type=name, id=name) for name in names])
        if phase == "before the handler":
            eventually(lambda: client.llen(f"broker:{prefix}celery") == len(names), "the messages are queued")
            os.kill(own_server.pid, signal.SIGSTOP)
            start_worker()
        else:
            start_worker()
            eventually(lambda: runs().total() == len(names), "the handlers run")
            os.kill(own_server.pid, signal.SIGSTOP)
        try:
            client.set(f"{prefix}go-on", 1)
            for line in (f"Soft time limit (2s) exceeded for {handler}.soft", struck):
                eventually(lambda line=line: line in processes.log("w1"), f"it is logged: {line}")
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        storage = Storage(bus.client, settings)
        done = [storage.keys.done(task_id_for("freezing", name, name)) for name in names]
        eventually(lambda: bus.client.exists(*done) == len(done), "all tasks have ended")
        assert runs() == Counter(names * times)
        assert {one.event_type: one.reason for one in storage.dead_letters.latest(10)} == reasons
        eventually(lambda: not client.hlen(f"broker:{prefix}unacked"), "all messages are acknowledged")

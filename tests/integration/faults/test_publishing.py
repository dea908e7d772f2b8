"""A worker whose handlers publish while the bus hangs."""

from __future__ import annotations

import os
import signal

from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.testing.redis_server import RedisServer
from tests.support.processes import Processes
from tests.support.waiting import eventually


def test_a_handler_that_publishes_to_a_frozen_redis(
    processes: Processes, own_server: RedisServer, prefix: str, client: Redis
) -> None:
    """In a worker, publishing ends after ``task_publish_timeout_s``; the task fails, and its dead letter is written."""
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="freezing")
    environment = processes.with_bus_apart(own_server)
    limits = {"BRIDGE_PUBLISH_TIMEOUT_S": "0.1", "BRIDGE_TASK_PUBLISH_TIMEOUT_S": "1.5"}
    with EventBus(settings) as bus:
        bus.publish("publishing.created", id="e")
        processes.celery("worker", "-c", "1", app="tests.freezing", name="w1", **environment, **limits)
        eventually(lambda: client.llen(f"{prefix}runs"), "the handler runs", 30)
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            client.set(f"{prefix}go-on", 1)
            (took,) = eventually(lambda: client.lrange(f"{prefix}took", 0, -1), "publishing has ended", 30)
            assert 1.0 < float(took) < 2.0
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        (letter,) = eventually(lambda: bus.storage.dead_letters.latest(9), "its dead letter is written", 30)
        assert "publishing it again under the same id is safe" in letter.detail

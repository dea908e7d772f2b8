"""A worker on a Redis that runs out of memory."""

from __future__ import annotations

import signal
import time

import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.site import QUICK_RECOVERY, Site
from tests.support.waiting import calls, eventually


@pytest.mark.timeout(120)
def test_tasks_wait_for_memory(site: Site, own_server: RedisServer, prefix: str) -> None:
    """While the bus has no memory for leases, no task runs and the worker does not spin; then each task runs once."""
    worker = site.processes.worker("w1", "-c", "1", BRIDGE_REDIS_URL=own_server.url, **QUICK_RECOVERY)
    eventually(lambda: "ready." in site.processes.log("w1"), "the worker waits for messages", 30)
    with EventBus(redis_url=own_server.url, channel_prefix=prefix) as bus, Redis.from_url(own_server.url) as admin:
        own = Storage(bus.client, bus.settings.model_copy(update={"group": "tests"})).ledger
        worker.send_signal(signal.SIGSTOP)  # until there are messages and no memory
        site.processes.celery("bus", "subscribe", name="subscribe", BRIDGE_REDIS_URL=own_server.url, **QUICK_RECOVERY)
        bus.publish_many([Event(type="dream.made", id=f"n{number}") for number in range(5)])
        eventually(lambda: own.size() == 5, "all are sent", 30)
        assert admin.config_set("maxmemory", 1)
        worker.send_signal(signal.SIGCONT)
        eventually(lambda: "used memory > 'maxmemory'" in site.processes.log("w1"), "a task cannot start")
        before = calls(admin)["evalsha"]
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 3, "three seconds have passed")
        assert calls(admin)["evalsha"] - before < 100
        assert not admin.exists(f"{prefix}effects")
        assert admin.config_set("maxmemory", 0)
        eventually(lambda: admin.llen(f"{prefix}effects") >= 5 and not own.size(), "all have run", 40)
        eventually(lambda: site.queues.length() == 0, "the copies that were sent in the meantime are skipped", 30)
        assert sorted(admin.lrange(f"{prefix}effects", 0, -1)) == [f"glob n{number}".encode() for number in range(5)]

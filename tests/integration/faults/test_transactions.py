"""Effects in the transaction that ends their task happen once, even if another process runs the task concurrently."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from redis import Redis

from bridge import EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.chaos.app import GROUP
from tests.support.processes import Processes
from tests.support.waiting import eventually

#: The lease of a frozen run expires, and the task is sent again, within two seconds.
FAST = {"BRIDGE_LEASE_S": "1", "BRIDGE_REDISPATCH_AFTER_S": "1", "BRIDGE_MAINTENANCE_INTERVAL_S": "0.2"}


@pytest.fixture
def bus(server: RedisServer, prefix: str) -> Iterator[EventBus]:
    with EventBus(redis_url=server.url, channel_prefix=prefix) as connected:
        yield connected


def test_a_task_frozen_before_its_effect(processes: Processes, bus: EventBus, client: Redis, prefix: str) -> None:
    """When a frozen task resumes after another copy has run, its transaction has no effect: one effect in total."""

    def worker(name: str) -> Any:
        addresses = {"CELERY_BROKER_URL": bus.settings.url, "CHAOS_ORACLE_URL": bus.settings.url}
        # The main process keeps running while its child is frozen. It must not receive the copies meant for the other
        # worker.
        arguments = ("worker", "-n", f"{name}@test", "-c", "1", "--prefetch-multiplier", "1")
        return processes.celery(*arguments, name=name, app="tests.chaos.app", **FAST, **addresses)

    def done(event_id: str) -> int:
        return client.exists(Keys(prefix).done(task_id_for(GROUP, event_id, "considered")))

    first = worker("first")
    bus.publish("chaos.considered", 1, id="e")
    lease = Keys(prefix).lease(task_id_for(GROUP, "e", "considered"))
    eventually(lambda: client.exists(lease), "the task runs", 30)
    (child,) = psutil.Process(first.pid).children()
    child.send_signal(signal.SIGSTOP)
    second = worker("second")
    eventually(lambda: done("e"), "another copy has ended", 30)
    assert client.lrange(f"{prefix}effects", 0, -1) == [b"considered e"]
    second.terminate()
    second.wait()
    child.send_signal(signal.SIGCONT)
    bus.publish("chaos.considered", id="f")
    eventually(lambda: done("f"), "the first worker has ended its task and run another")
    assert client.lrange(f"{prefix}effects", 0, -1) == [b"considered e", b"considered f"]
    assert not client.exists(Keys(prefix).dead(GROUP))


def test_a_retry_that_the_broker_refuses(
    processes: Processes, bus: EventBus, own_server: RedisServer, client: Redis, prefix: str
) -> None:
    """A task that retries while the broker has no memory runs again afterwards: one effect, no dead letter."""
    addresses = {"CELERY_BROKER_URL": own_server.url, "CHAOS_ORACLE_URL": bus.settings.url}

    def worker(name: str) -> None:
        processes.celery("worker", "-c", "1", name=name, app="tests.chaos.app", **FAST, **addresses)

    worker("first")
    bus.publish("chaos.retrying", 1, id="e")
    task_id = task_id_for(GROUP, "e", "retrying")
    eventually(lambda: client.exists(Keys(prefix).lease(task_id)), "the task runs", 30)
    with Redis.from_url(own_server.url) as broker:
        assert broker.config_set("maxmemory", 1)
        eventually(lambda: f"{task_id}] reject requeue=True" in processes.log("first"), "its retry is refused")
        assert broker.config_set("maxmemory", 0)
    worker("second")  # Celery 5.7 may have ended the first worker, which cannot return the message
    eventually(lambda: client.exists(Keys(prefix).done(task_id)), "the task has ended", 30)
    assert client.lrange("runs", 0, -1).count(b"retrying e") == 1
    assert not client.exists(Keys(prefix).dead(GROUP))

"""Queues of RabbitMQ, which knows their consumers, but does not show the next message."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.storage import QueueStatus, Storage
from bridge.subscriber.monitoring.queue_states import Limits
from tests.support.processes import Processes
from tests.support.queue_monitors import measure_queues
from tests.support.waiting import eventually


@pytest.fixture
def queue(rabbit_app: Celery, settings: BridgeSettings, client: Redis) -> Iterator[Callable[[str], QueueStatus]]:
    with measure_queues(rabbit_app, Storage(client, settings), Limits(alone_s=0.5)) as measured:
        yield measured


def test_a_queue_that_nobody_takes_from(
    rabbit_processes: Processes, bus: EventBus, queue: Callable[[str], QueueStatus]
) -> None:
    """The broker shows messages and consumers, the ledger the age; a worker that takes from it, or dies, is noticed."""
    assert queue("missing").messages is None
    rabbit_processes.worker("w1", "-Q", "celery")
    eventually(lambda: rabbit_processes.log("w1").count("ready."), "the worker waits for messages", 30)
    bus.publish("routed.elsewhere")
    eventually(lambda: queue("elsewhere").problem == "no_consumer", "nobody takes from the queue", 20)
    found = queue("elsewhere")
    assert (found.messages, found.consumers) == (1, 0)
    assert 0.5 <= (found.oldest_s or 0) < 60
    second = rabbit_processes.worker("w2", "-Q", "elsewhere", "--no-subscriber")
    eventually(lambda: (queue("elsewhere").consumers, queue("elsewhere").problem) == (1, ""), "a worker takes it", 30)
    assert queue("elsewhere").messages == 0
    os.killpg(second.pid, 9)
    eventually(lambda: queue("elsewhere").consumers == 0, "the worker is dead", 20)

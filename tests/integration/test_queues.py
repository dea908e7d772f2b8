"""Who takes from the queues of real workers, as the subscribers of their group see it."""

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

#: A queue has a problem sooner than with a real subscriber.
SOON = Limits(alone_s=0.5, still_s=300.0)


@pytest.fixture
def queue(app: Celery, settings: BridgeSettings, client: Redis) -> Iterator[Callable[[str], QueueStatus]]:
    """Measure the queues of the application of the workers; return what all subscribers report of one."""
    with measure_queues(app, Storage(client, settings), SOON) as measured:
        yield measured


def test_workers_that_come_and_go(processes: Processes, bus: EventBus, queue: Callable[[str], QueueStatus]) -> None:
    """A queue has the workers that take from it: those without a subscriber, too, until they die, or by a command."""
    queue("celery")  # this process is elected, not a subscriber of the workers, which measures more slowly
    processes.worker("w1", "-Q", "celery")
    eventually(lambda: queue("celery").consumers == 1, "the worker takes from its queue")
    bus.publish("routed.elsewhere")
    eventually(lambda: queue("elsewhere").problem == "no_consumer", "nobody takes from the other queue", 20)
    assert queue("elsewhere").messages == 1
    second = processes.worker("w2", "-Q", "elsewhere", "--no-subscriber")
    eventually(lambda: queue("elsewhere").consumers == 1, "the second worker takes from it", 30)
    eventually(lambda: (queue("elsewhere").messages, queue("elsewhere").problem) == (0, ""), "the task has run")
    os.killpg(second.pid, 9)
    eventually(lambda: queue("elsewhere").consumers == 0, "it is dead", 10)
    assert processes.output("control", "add_consumer", "elsewhere")
    eventually(lambda: queue("elsewhere").consumers == 1, "the first worker takes from it", 10)
    assert processes.output("control", "cancel_consumer", "elsewhere")
    eventually(lambda: queue("elsewhere").consumers == 0, "it takes from it no more", 10)
    assert queue("celery").consumers == 1

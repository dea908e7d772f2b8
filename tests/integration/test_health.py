"""Readiness of a real worker."""

from __future__ import annotations

import json

import psutil

from bridge import EventBus
from tests.support.processes import Processes
from tests.support.scrape import Ask, Page, listening, ready
from tests.support.waiting import eventually


def test_a_real_worker(processes: Processes, bus: EventBus, ask: Ask, port: int) -> None:
    """Ready soon after its start; kill -9 leaves no port taken, and the next worker has it at once."""
    environment = {"BRIDGE_METRICS_PORT": str(port)}
    worker = processes.worker("w1", **environment)
    eventually(lambda: ready(ask), "it is ready", 30)
    assert json.loads(ask("/readyz")[1]) == {"ok": True, "problems": [], "waits": ""}
    assert ask("/healthz")[0] == 200
    assert json.loads(ask("/healthz")[1]) == {"ok": True, "problems": []}
    bus.publish("failing.created")
    eventually(lambda: 'bridge_dead_letters_written_total{group="tests"} 1.0' in ask("/metrics")[1], "a dead letter")
    assert Page(ask("/metrics")[1]).events("dead_lettered") == {}, "that was a task's, not the subscriber's"
    assert 'bridge_task_start_delay_seconds_count{group="tests"} 1.0' in ask("/metrics")[1]

    main = psutil.Process(worker.pid)
    assert listening(main) == {("127.0.0.1", port)}
    first = main.children()
    first[0].kill()
    # This one is forked while the port is open, as every child is that takes the place of another.
    later = eventually(lambda: [child for child in main.children() if child not in first], "a new child of the pool")
    eventually(lambda: listening(later[0]) == set(), "it has let go of the port")
    main.kill()
    worker.wait()
    processes.worker("w2", **environment)
    eventually(lambda: ready(ask), "the next one is ready", 30)

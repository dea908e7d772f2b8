"""Readiness of a real worker, and of a subscriber without a broker."""

from __future__ import annotations

import json

import psutil
from celery import Celery

from bridge import EventBus
from tests.support.apps import StartSubscriber
from tests.support.processes import Processes
from tests.support.proxy import Proxy
from tests.support.scrape import Ask, Page, listening, problems, ready
from tests.support.waiting import eventually


def test_a_real_worker(processes: Processes, bus: EventBus, ask: Ask, port: int) -> None:
    """A worker is ready soon after its start; after kill -9, the port is free, and the next worker uses it at once."""
    environment = {"BRIDGE_METRICS_PORT": str(port)}
    worker = processes.worker("w1", **environment)
    eventually(lambda: ready(ask), "the worker is ready", 30)
    assert json.loads(ask("/readyz")[1]) == {"ok": True, "problems": [], "waits": ""}
    assert ask("/healthz")[0] == 200
    assert json.loads(ask("/healthz")[1]) == {"ok": True, "problems": []}
    bus.publish("failing.created")
    eventually(
        lambda: 'bridge_dead_letters_written_total{group="tests"} 1.0' in ask("/metrics")[1],
        "the dead letter is counted",
    )
    assert Page(ask("/metrics")[1]).events("dead_lettered") == {}, (
        "the dead letter belongs to a task, not to the subscriber"
    )
    assert 'bridge_task_start_delay_seconds_count{group="tests"} 1.0' in ask("/metrics")[1]

    main = psutil.Process(worker.pid)
    assert listening(main) == {("127.0.0.1", port)}
    first = main.children()
    first[0].kill()
    # This child is forked while the port is open, like every replacement of a child.
    later = eventually(lambda: [child for child in main.children() if child not in first], "the pool has a new child")
    eventually(lambda: listening(later[0]) == set(), "the child has closed the port")
    main.kill()
    worker.wait()
    processes.worker("w2", **environment)
    eventually(lambda: ready(ask), "the next worker is ready", 30)


def test_the_broker_is_away(
    register_handlers,
    start_subscriber: StartSubscriber,
    far_app: Celery,
    proxy: Proxy,
    bus: EventBus,
    ask: Ask,
    port: int,
) -> None:
    """While the broker is down and the bus is available, the subscriber is not ready and reports why dispatch fails."""
    register_handlers("t.all")
    start_subscriber(app=far_app, metrics_port=port)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    proxy.refuse()
    bus.publish("a.b")
    eventually(lambda: problems(ask).startswith("broker: "), "the broker is reported", 10)
    eventually(lambda: "dispatch fails: " in problems(ask), "the failing dispatch is reported", 10)
    metrics = ask("/metrics")[1]
    assert "bridge_bus_up 1.0" in metrics
    assert "bridge_broker_up 0.0" in metrics
    assert 'bridge_backlog_events{group="tests"} 1.0' in metrics
    assert ask("/healthz")[0] == 200
    proxy.heal()
    eventually(lambda: ready(ask), "the subscriber is ready again", 15)

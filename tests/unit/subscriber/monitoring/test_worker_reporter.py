"""What a worker reports of its queues, and its warning of queues that no worker takes."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings
from bridge.broker import broker_id
from bridge.storage.storage import Storage
from bridge.subscriber.monitoring.worker_reporter import WorkerReporter
from tests.handlers import HANDLERS
from tests.support.waiting import eventually


def worker_of(*queues: str) -> Any:
    """Return what the reporter reads of a worker of Celery that takes these queues."""
    consumer = SimpleNamespace(queues=[SimpleNamespace(name=name) for name in queues], consuming_from=lambda _: True)
    return SimpleNamespace(consumer=SimpleNamespace(task_consumer=consumer))


#: By the name of the task, of ``tests/handlers.py``.
QUEUES = {"t.exact": "orders", "t.plain": "orders", "t.chosen": "payments", "t.all": "celery"}
SENT_TO = [replace(HANDLERS[name], send_options={"queue": queue}) for name, queue in QUEUES.items()]


@pytest.mark.parametrize(
    ("own", "others", "warned"),
    [
        (["celery"], [], ["orders", "payments"]),
        (["celery", "orders"], [], ["payments"]),
        (["celery"], [("same broker", "payments")], ["orders"]),
        (["celery"], [("another broker", "payments")], ["orders", "payments"]),
        (["celery", "orders", "payments"], [], []),
        (["other"], [("same broker", "orders"), ("same broker", "payments")], ["celery"]),
    ],
)
def test_queues_that_no_worker_takes(
    app: Celery,
    settings: BridgeSettings,
    client: Redis,
    caplog: pytest.LogCaptureFixture,
    own: list[str],
    others: list[tuple[str, str]],
    warned: list[str],
) -> None:
    """A worker warns once of each queue that no worker of its group and broker takes, with the handlers it is for."""
    app.finalize()
    broker, storage = broker_id(app), Storage(client, settings)
    for number, (where, queue) in enumerate(others):
        storage.workers.report(f"other{number}", broker if where == "same broker" else "else", [queue])
    reporter = WorkerReporter(app, settings, "w1", worker_of(*own), SENT_TO, interval_s=0.02)
    with caplog.at_level(logging.WARNING, "bridge"):
        reporter.start()
        eventually(lambda: len(storage.workers.alive([settings.group])) > len(others), "it has reported")
        eventually(lambda: len(caplog.records) >= len(warned), "it has warned")
        reporter.stop()
    found = {record.queue: record.getMessage() for record in caplog.records}  # type: ignore[attr-defined]
    assert sorted(found) == warned
    assert len(caplog.records) == len(found)
    for queue, text in found.items():
        assert f"Start one with -Q {queue}," in text
        assert text.endswith(f"-Q {','.join(sorted([*own, queue]))}")
    if "orders" in found:
        assert "where those of t.exact, t.plain wait" in found["orders"]


def test_a_worker_that_takes_no_queue_yet(
    app: Celery, settings: BridgeSettings, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that is not connected to its broker does not know its queues, and warns when it does."""
    app.finalize()
    worker, storage = SimpleNamespace(consumer=None), Storage(client, settings)
    reporter = WorkerReporter(app, settings, "w1", worker, SENT_TO, interval_s=0.02)
    with caplog.at_level(logging.WARNING, "bridge"):
        reporter.start()
        eventually(lambda: storage.workers.alive([settings.group]), "it has reported")
        assert caplog.records == []
        worker.consumer = worker_of("celery").consumer
        eventually(lambda: len(caplog.records) == 2, "it has warned")
        reporter.stop()

"""Errors of handlers do not reveal sensitive values in the log of a worker."""

from __future__ import annotations

import threading
from typing import Any

from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.events.redaction import REDACTED
from bridge.storage.storage import Storage
from tests.support.processes import Processes
from tests.support.sensitive import PAYLOAD
from tests.support.waiting import eventually

LEAKS = ["raise", "chain", "model", "inside", "retry", "auto", "reject", "return", "where"]


def test_a_worker_keeps_it_to_itself(
    processes: Processes, settings: BridgeSettings, client: Redis, bus: EventBus, prefix: str
) -> None:
    """Sensitive values are not in the log, Flower's events, dead letters or stored failures, however a handler ends."""
    from tests.leaky import app  # its address comes from the environment of the worker

    heard: list[dict[str, Any]] = []
    app.conf.update(broker_url=settings.url, result_backend=settings.url)
    for name in ("broker_transport_options", "result_backend_transport_options"):
        app.conf[name] = app.conf[name] | {"global_keyprefix": f"broker:{prefix}"}
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        ears = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=None), daemon=True)
        ears.start()
        environment = {"BRIDGE_REDACT_PATHS": '["payload.user"]'}
        processes.celery("worker", "-c", "1", "-E", "-l", "DEBUG", app="tests.leaky", name="w1", **environment)
        for leak in LEAKS:
            bus.publish(f"leak.{leak}", PAYLOAD, id=leak)
        letters = Storage(client, settings).dead_letters
        eventually(lambda: letters.size().count == len(LEAKS) - 1, "all but one end as dead letters", 40)
        app.send_task("no.such.task", [PAYLOAD], argsrepr="()")
        eventually(lambda: "no.such.task" in processes.log("w1"), "the unknown task is logged")
        eventually(lambda: [one for one in heard if one["type"] == "task-succeeded"], "worker events are received")
        receiver.should_stop = True
        ears.join(10)
    log = processes.log("w1")
    assert "lovelace" not in log.lower()
    assert "ValueError: no mail to [redacted] or [redacted]" in log
    assert f"{REDACTED} (" in log  # the body of the unknown task
    assert {one["type"] for one in heard} >= {"task-failed", "task-retried", "task-deadlettered"}
    assert "lovelace" not in repr(heard).lower()
    for letter in letters.latest(20):
        assert "lovelace" not in repr(letter).lower()
        assert letter.redacted
    for key in client.scan_iter(f"broker:{prefix}celery-task-meta-*"):
        assert b"lovelace" not in client.get(key).lower() or b'"SUCCESS"' in client.get(key)

"""Ledgers on a real Redis, and what tests do with them."""

from __future__ import annotations

from collections.abc import Callable

from bridge.storage.in_flight import Ended, InFlightTask
from bridge.storage.ledger import Ledger

PAIR = InFlightTask(handler="t.all", event_id="e1", entry_id="1-1", queue="celery")

MakeLedger = Callable[..., Ledger]


def end(ledger: Ledger, task_id: str) -> None:
    """End a task with success."""
    ledger.end(task_id, Ended())

"""Processes of two applications with one name, and so one group, whose subscribers have different handlers or none."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.processes import Processes
from tests.support.queues import Queues
from tests.support.site import QUICK_RECOVERY
from tests.support.waiting import eventually


def lean(processes: Processes, name: str, **environment: str) -> Any:
    """Start a subscriber of ``tests/lean.py`` in an interpreter that has imported no other handlers."""
    command = (sys.executable, "-m", "celery", "-A", "tests.lean", "bus", "subscribe")
    return processes.start(*command, name=name, **QUICK_RECOVERY | environment)


@pytest.mark.timeout(150)
def test_a_subscriber_with_other_handlers_is_killed(
    processes: Processes, settings: BridgeSettings, client: Redis, prefix: str, queues: Queues
) -> None:
    """Each event gets to the handlers of both, once, though one of them is killed and started again under load."""
    presence, keys = Storage(client, settings).presence, Keys(prefix)

    def with_lean() -> set[str]:
        return {one.name for one in presence.all() if one.ready and "tests.lean.lean" in one.handlers}

    processes.celery("bus", "subscribe", name="others", **QUICK_RECOVERY)
    doomed = lean(processes, "doomed", TEST_HANDLERS="1")
    eventually(with_lean, "the handler is known", 30)
    first = with_lean()
    eventually(lambda: len([one for one in presence.all() if one.ready]) == 2, "both are ready", 30)
    events = [Event(type=("lean.a", "dream.created")[number % 2], id=f"n{number}") for number in range(800)]
    with EventBus(settings) as bus:
        bus.publish_many(events[:400])
        eventually(lambda: client.hlen(keys.handed_over("tests")) or queues.length() > 100, "entries are handed over")
        os.killpg(doomed.pid, 9)
        assert doomed.wait(10) == -9
        lean(processes, "heir", TEST_HANDLERS="1")
        bus.publish_many(events[400:500])
        eventually(lambda: with_lean() - first, "the new one is ready", 30)
        bus.publish_many(events[500:])
    expected = {f"tests.lean.lean lean.a n{number}" for number in range(0, 800, 2)}
    eventually(lambda: queues.tasks().keys() >= expected, "the events have reached the handler", 60)
    eventually(lambda: client.xpending(keys.journal, "tests")["pending"] == 0, "all is acknowledged", 30)
    assert set(queues.tasks().values()) == {1}
    assert len(queues.tasks()) == 1200, "a dream.created has two handlers"
    assert client.hlen(keys.handed_over("tests")) == 0


def test_a_forgotten_import(
    processes: Processes, bus: EventBus, client: Redis, prefix: str, settings: BridgeSettings, queues: Queues
) -> None:
    """A subscriber whose handlers nobody imports acknowledges nothing; another one dispatches all of it."""
    lean(processes, "bare")
    presence, journal = Storage(client, settings).presence, Keys(prefix).journal
    eventually(
        lambda: any("no handlers" in problem for one in presence.all() for problem in one.problems),
        "it reports that it is not ready",
        30,
    )
    bus.publish_many([Event(type="dream.made", id=f"n{number}") for number in range(100)])
    assert "Events of group tests stay in the journal" in processes.log("bare")
    (group,) = client.xinfo_groups(journal)
    assert (group["pending"], group["consumers"], group["last-delivered-id"]) == (0, 0, b"0-0")
    processes.celery("bus", "subscribe", name="others", **QUICK_RECOVERY)
    eventually(lambda: len(queues.tasks()) == 100, "all events are dispatched", 30)
    assert "handlers_differ" not in processes.log("others")

"""The presence of a worker that is killed."""

from __future__ import annotations

import os

import pytest
from redis import Redis

from bridge import BridgeSettings
from bridge.storage.presence import Presence, PresenceStore
from bridge.storage.storage import Storage
from tests.support.processes import Processes
from tests.support.waiting import eventually


@pytest.fixture
def presences(client: Redis, settings: BridgeSettings) -> PresenceStore:
    return Storage(client, settings).presence


def only(presences: PresenceStore) -> Presence:
    """Return the only subscriber; before its first report, one without a name, which is not ready."""
    (one,) = presences.all() or [Presence("", problems=["no report yet"])]
    return one


def test_a_killed_worker_is_gone_within_ten_seconds(
    processes: Processes, presences: PresenceStore, settings: BridgeSettings
) -> None:
    """A killed worker cannot report its end; within ten seconds it is still listed, but not as alive."""
    worker = processes.celery("bus", "subscribe", name="subscriber")
    found = eventually(lambda: only(presences).name and only(presences), "the subscriber is alive", 20)
    assert found.name.endswith(f":{worker.pid}")
    os.killpg(worker.pid, 9)
    eventually(lambda: not only(presences).alive, "the subscriber is not alive", 10)
    assert 6 < only(presences).seen_s < 10

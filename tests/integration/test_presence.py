"""The presence of subscribers that are killed, and their names."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from bridge import BridgeSettings, EventBus
from bridge.storage.keys import Keys
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
    assert f":{worker.pid}:" in found.name
    os.killpg(worker.pid, 9)
    eventually(lambda: not only(presences).alive, "the subscriber is not alive", 10)
    assert 6 < only(presences).seen_s < 10


def test_names_of_killed_subscribers_go(
    processes: Processes, client: Redis, bus: EventBus, prefix: str, presences: PresenceStore
) -> None:
    """Each start has another name; those of killed subscribers leave the group, with what they had read."""
    fast = {"BRIDGE_CLAIM_IDLE_S": "1", "BRIDGE_MAINTENANCE_INTERVAL_S": "0.3", "BRIDGE_BLOCK_MS": "100"}
    journal, names = Keys(prefix).journal, set()

    def consumers() -> set[str]:
        with suppress(ResponseError):  # no journal yet
            return {row["name"].decode() for row in client.xinfo_consumers(journal, "tests")}
        return set()

    for number in range(4):
        subscriber = processes.celery("bus", "subscribe", name=f"subscriber{number}", **fast)
        (name,) = eventually(lambda: consumers() - names, f"subscriber {number} reads", 20)
        names.add(name)
        if number < 3:
            subscriber.kill()
            (entry,) = [bus.publish("a.b", number) and client.xrevrange(journal, count=1)[0][0]]
            client.xreadgroup("tests", name, {journal: ">"})  # it was killed with an entry in its hands
            assert entry in [row["message_id"] for row in client.xpending_range(journal, "tests", "-", "+", 9)]
    eventually(lambda: consumers() == {name}, "only the name of the running one is left", 20)
    assert client.xpending(journal, "tests")["pending"] == 0
    assert [one.name for one in presences.all() if one.alive] == [name]

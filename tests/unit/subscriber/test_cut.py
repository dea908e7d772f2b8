"""A publisher that removes the entries of others from the journal does not take their events from any group."""

from __future__ import annotations

import pytest

from bridge import BridgeSettings, EventBus
from bridge.storage.entries import stream_position
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.outside import Outside
from tests.support.queues import Queues
from tests.support.waiting import eventually


def test_what_was_not_dispatched_is_dispatched_all_the_same(
    register_handlers,
    start_subscriber: StartSubscriber,
    settings: BridgeSettings,
    outside: Outside,
    queues: Queues,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After ``XADD MAXLEN 0`` the entries that a group had not acknowledged come back, and no others."""
    register_handlers("t.all")
    client, keys = outside.client, outside.keys
    storage = Storage(client, settings)
    storage.consumer("earlier").create_group("earliest")  # a subscriber that creates it restores everything
    subscriber = start_subscriber(maintenance_interval_s=0.1)
    behind = storage.of_group("behind").consumer("one")
    with EventBus(settings) as bus:
        bus.publish("a.b", id="n0")
        behind.create_group("earliest")
        client.xack(keys.journal, "behind", *[entry.entry_id for entry in behind.read(1, 1000)])
        bus.publish("a.b", id="n1")
        last = bus.publish("a.b", id="n2") and client.xrevrange(keys.journal, count=1)[0][0]
        eventually(lambda: queues.length() == 3, "all are dispatched for the group of the subscriber")
        first, _ = client.xrange(keys.journal, count=1)[0]

        def recorded() -> bool:
            names = (client.get(keys.journal_start) or b"").split()
            after = stream_position(names[1].decode()) if len(names) == 3 else (0, 0)
            return names[:1] == [first] and stream_position(first.decode()) < after <= stream_position(last.decode())

        eventually(recorded, "a trim has recorded the beginning of the journal")
        client.xadd(keys.journal, {"id": "x", "type": "x", "event": "no event"}, maxlen=0, approximate=False)
        assert client.xlen(keys.journal) == 0
        eventually(lambda: client.xlen(keys.journal) == 2, "the entries are in the journal again")
        eventually(lambda: queues.length() == 5, "they are dispatched again, with the same task ids")
    assert {fields[b"id"] for _, fields in client.xrange(keys.journal)} == {b"n1", b"n2"}
    assert queues.tasks() == {"t.all a.b n0": 1, "t.all a.b n1": 2, "t.all a.b n2": 2}
    assert len(behind.read(9, 1)) == 2
    assert subscriber.info()["journal_lost"] == 1
    assert [getattr(record, "action", "") for record in caplog.records].count("journal_cut") == 1

"""Leader election between subscribers of a group."""

from __future__ import annotations

import time

from redis import Redis

from bridge import BridgeSettings
from bridge.storage.storage import Storage
from bridge.subscriber.maintenance.leader import Leader


def test_one_of_two_is_elected_until_it_resigns(client: Redis, settings: BridgeSettings) -> None:
    """The first subscriber stays leader until it resigns; then the other is elected immediately."""
    storage = Storage(client, settings)
    first, second = Leader(storage, "first"), Leader(storage, "second")
    assert [first.elected(), second.elected(), first.elected(), second.elected()] == [True, False, True, False]
    second.resign()  # has no effect, as it is not the leader
    assert not second.elected()
    first.resign()
    assert [second.elected(), first.elected()] == [True, False]


def test_a_term_ends_when_the_leader_no_longer_asks(client: Redis, settings: BridgeSettings) -> None:
    """A leader that crashed is replaced after three rounds of maintenance."""
    storage = Storage(client, settings.model_copy(update={"maintenance_interval_s": 0.05}))
    first, second = Leader(storage, "first"), Leader(storage, "second")
    assert first.elected()
    assert not second.elected()
    time.sleep(0.2)
    assert second.elected()


def test_groups_have_separate_leaders(client: Redis, settings: BridgeSettings) -> None:
    """Each consumer group elects a separate leader."""
    storage = Storage(client, settings)
    assert Leader(storage, "one").elected()
    assert Leader(storage.of_group("other"), "two").elected()

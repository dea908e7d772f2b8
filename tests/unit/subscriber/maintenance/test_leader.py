"""Leader election between subscribers of a group."""

from __future__ import annotations

import time

from redis import Redis

from bridge import BridgeSettings
from bridge.storage.keys import Keys
from bridge.subscriber.maintenance.leader import Leader


def test_one_of_two_is_elected_until_it_resigns(client: Redis, settings: BridgeSettings) -> None:
    """The first subscriber stays leader until it resigns; then the other is elected immediately."""
    key = Keys(settings.channel_prefix).leader("tests")
    first, second = Leader(client, key, "first", 15.0), Leader(client, key, "second", 15.0)
    assert [first.elected(), second.elected(), first.elected(), second.elected()] == [True, False, True, False]
    second.resign()  # has no effect, as it is not the leader
    assert not second.elected()
    first.resign()
    assert [second.elected(), first.elected()] == [True, False]


def test_a_term_ends_when_the_leader_no_longer_asks(client: Redis, settings: BridgeSettings) -> None:
    """A leader that crashed is replaced after three rounds."""
    key = Keys(settings.channel_prefix).leader("tests")
    first, second = Leader(client, key, "first", 0.05), Leader(client, key, "second", 0.05)
    assert first.elected()
    assert not second.elected()
    time.sleep(0.2)
    assert second.elected()


def test_groups_have_separate_leaders(client: Redis, settings: BridgeSettings) -> None:
    """Each consumer group elects a separate leader."""
    keys = Keys(settings.channel_prefix)
    assert Leader(client, keys.leader("tests"), "one", 15.0).elected()
    assert Leader(client, keys.leader("other"), "two", 15.0).elected()

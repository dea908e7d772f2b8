"""Checks of the journals on the server, also in ``bus check`` and at the start of a subscriber."""

from __future__ import annotations

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.journal_checks import check_journal_ids, check_prefixes
from tests.support.apps import StartSubscriber
from tests.support.outside import now_ms
from tests.support.waiting import eventually


@pytest.fixture
def longer(settings: BridgeSettings) -> BridgeSettings:
    """The settings of a bus whose prefix begins with that of the test, and which has events."""
    other = settings.model_copy(update={"channel_prefix": f"{settings.channel_prefix}eu[*]:"})
    with EventBus(other) as bus:
        bus.publish("order.paid")
    return other


def test_overlapping_prefixes_are_found_on_both_sides(
    client: Redis, settings: BridgeSettings, longer: BridgeSettings
) -> None:
    """Each of two buses names the other one; one that only has the same beginning is not named."""
    assert check_prefixes(client, longer) == []  # the other bus has no journal yet
    with EventBus(settings) as bus:
        bus.publish("order.paid")
    beside = settings.model_copy(update={"channel_prefix": f"{settings.channel_prefix[:-1]}x:"})
    with EventBus(beside) as bus:
        bus.publish("order.paid")
    (of_longer,), (of_shorter,) = check_prefixes(client, longer), check_prefixes(client, settings)
    assert of_longer.problem.startswith(
        f"it begins with that of the bus {settings.channel_prefix!r}: that bus receives"
    )
    assert of_shorter.problem.startswith(f"the bus {longer.channel_prefix!r} begins with it: this bus receives")
    assert check_prefixes(client, beside) == []
    assert check_prefixes(client, settings.model_copy(update={"enable_pubsub": False})) == []


def test_a_subscriber_warns_of_an_overlap(
    register_handlers, start_subscriber: StartSubscriber, longer: BridgeSettings
) -> None:
    """Because events of the other bus become dead letters here, or run handlers if they have no type."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    eventually(
        lambda: any(longer.channel_prefix in text for text in subscriber.info()["warnings"]), "the overlap is reported"
    )


def test_ids_that_are_ahead_are_found(client: Redis, settings: BridgeSettings) -> None:
    """The check compares the last id with the clock of the server, and says what repairs it."""
    storage = Storage(client, settings)
    assert check_journal_ids(storage) == []
    with EventBus(settings) as bus:
        bus.publish(Event(type="a.b"))
        assert check_journal_ids(storage) == []
        client.xadd(Keys(settings.channel_prefix).journal, {"f": "v"}, id=f"{now_ms() + 3_600_000}-0")
        (finding,) = check_journal_ids(storage)
        assert " s ahead of the clock of Redis" in finding.problem
        assert "which repairs it" in finding.advice

"""No publisher, and no clock that was ahead, can stop the bus with an id of the future in the journal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from redis import Redis

from bridge import BusUnavailable, EventBus
from bridge.storage.keys import Keys
from tests.support.apps import StartSubscriber
from tests.support.outside import SIGNED, Outside, now_ms
from tests.support.queues import Queues
from tests.support.waiting import eventually

DAY_MS = 86_400_000
LAST_ID = "18446744073709551615-18446744073709551615"


@pytest.fixture
def bus(outside: Outside) -> Iterator[EventBus]:
    with EventBus(outside.settings) as connected:
        yield connected


def attack(client: Redis, prefix: str, entry_id: str) -> None:
    client.xadd(Keys(prefix).journal, {"id": "x", "type": "x", "event": "no event"}, id=entry_id)


@pytest.mark.parametrize("days", [3, None], ids=["future", "last"])
def test_publishers_and_dispatch_go_on(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    outside: Outside,
    queues: Queues,
    caplog: pytest.LogCaptureFixture,
    days: int | None,
) -> None:
    """The next publication succeeds, every event is dispatched once, and the log reports it."""
    register_handlers("t.all")
    caplog.set_level(logging.INFO)
    start_subscriber()
    bus.publish("a.b", id="before")
    eventually(lambda: queues.length() == 1, "the event before is dispatched")
    attack(outside.client, queues.prefix, LAST_ID if days is None else f"{now_ms() + days * DAY_MS}-0")
    bus.publish("a.b", id="after")
    outside.say(outside.unsigned("heard", "a.b"), "a.b")
    eventually(lambda: queues.length() == 3, "the events after are dispatched")
    assert queues.tasks() == {f"t.all a.b {name}": 1 for name in ("before", "after", "heard")}
    eventually(lambda: outside.reasons() == ["json"], "the entry of the attack is a dead letter")
    last, _ = outside.client.xrevrange(outside.keys.journal, count=1)[0]
    assert int(last.partition(b"-")[0]) < now_ms() + 60_000
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert actions.count("journal_ahead") == 1
    assert "journal_lost" not in actions


def test_nothing_is_dispatched_twice_under_load(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, outside: Outside, queues: Queues
) -> None:
    """Two subscribers of one group and one of another hold entries while the journal is repaired several times."""
    register_handlers("t.all")
    for name, group in (("one", "tests"), ("two", "tests"), ("three", "others")):
        start_subscriber(name, group=group)
    failures: list[BaseException] = []

    def publish(publisher: int) -> None:
        try:
            for number in range(200):
                bus.publish("a.b", id=f"n{publisher}-{number}")
        except BusUnavailable as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for wanted, entry_id in ((200, LAST_ID), (600, f"{now_ms() + DAY_MS}-0"), (1000, LAST_ID)):
        eventually(lambda wanted=wanted: queues.length() > wanted, "some events are dispatched")
        attack(outside.client, queues.prefix, entry_id)
    for thread in threads:
        thread.join(30)
    assert failures == []
    eventually(lambda: queues.length() >= 1600, "all events are dispatched", 30)
    assert set(queues.tasks().values()) == {2}, "once for each group"
    assert queues.length() == 1600


def test_a_backlog_of_the_future_is_dispatched_at_the_start(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues
) -> None:
    """The clock of the server was ahead while no subscriber ran: the signed events of that time are not too old."""
    register_handlers("t.plain")
    future_ms = now_ms() + 3 * DAY_MS
    for number in range(700):
        outside.write(outside.signed(f"n{number}"), f"{future_ms}-{number + 1}", id=f"n{number}")
    start_subscriber(**SIGNED)
    eventually(lambda: queues.length() == 700, "all events are dispatched")
    assert set(queues.tasks().values()) == {1}
    assert outside.reasons() == []


def test_without_a_subscriber_the_error_says_what_helps(bus: EventBus, outside: Outside) -> None:
    """A publisher whose retries are over names the cause."""
    attack(outside.client, outside.keys.prefix, LAST_ID)
    with pytest.raises(BusUnavailable, match=r"exhausted the last possible ID.*start a subscriber, which repairs it"):
        bus.publish("a.b")

"""Redispatch and back-pressure: lost messages are sent again, queued ones are not, full queues pause dispatch."""

from __future__ import annotations

import time

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually

#: Tasks are overdue almost immediately, and checked several times a second.
HASTY = {"redispatch_after_s": 0.3, "maintenance_interval_s": 0.05}


@pytest.fixture
def bus(settings: BridgeSettings) -> EventBus:
    with EventBus(settings) as connected:
        yield connected


def publish(bus: EventBus, count: int, first: int = 0) -> None:
    bus.publish_many([Event(type="dream.created", id=f"n{number}") for number in range(first, first + count)])


def steal(client: Redis, prefix: str) -> str:
    """Remove the oldest message from the queue, like a broker that loses it; return its task id."""
    message = Queues(client, prefix).messages()[0]
    assert client.rpop(f"broker:{prefix}celery")
    return str(message["headers"]["id"])


def lose_message_and_entry(bus: EventBus, queues: Queues) -> str:
    """Dispatch one event, remove its message from the queue and its entry from the journal; return the task id."""
    publish(bus, 1)
    eventually(lambda: queues.length() == 1, "the message is queued")
    task_id = steal(queues.client, queues.prefix)
    assert queues.client.xtrim(Keys(queues.prefix).journal, maxlen=0) == 1
    return task_id


def due_times(client: Redis, prefix: str) -> dict[bytes, float]:
    return dict(client.zrange(Keys(prefix).inflight("tests"), 0, -1, withscores=True))


def later(due: dict[bytes, float], before: dict[bytes, float]) -> bool:
    return all(due[task_id] > before[task_id] for task_id in before)


def test_a_lost_message_is_sent_again(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, client: Redis, prefix: str
) -> None:
    """A message that is neither queued nor running is sent again, with the same task id, and counted."""
    register_handlers("t.exact")
    subscriber = start_subscriber(**HASTY)
    publish(bus, 1)
    eventually(lambda: queues.length() == 1, "the message is queued")
    lost = steal(client, prefix)
    again = eventually(queues.messages, "the message is queued again")
    assert [message["headers"]["id"] for message in again] == [lost] == [task_id_for("tests", "n0", "t.exact")]
    assert again[0]["headers"]["argsrepr"] == "(<Event dream.created n0>,)"
    eventually(lambda: subscriber.info().get("redispatched") == 1, "the redispatch is counted")


@pytest.mark.parametrize("payload", ["as dispatched", "another"])
def test_a_key_with_another_payload_is_not_sent(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    settings: BridgeSettings,
    payload: str,
) -> None:
    """If message and entry are lost, a task is sent again from the key only if that has the payload of before."""
    register_handlers("t.exact")
    start_subscriber(**HASTY)
    bus.publish("dream.created", "as dispatched", id="n0")
    eventually(lambda: queues.length() == 1, "the message is queued")
    key = Keys(queues.prefix).event("n0")
    queues.client.set(key, Event(id="n0", type="dream.created", payload=payload, source="somebody").encode(), ex=60)
    assert queues.client.xtrim(Keys(queues.prefix).journal, maxlen=0) == 1
    steal(queues.client, queues.prefix)
    if payload == "as dispatched":
        eventually(lambda: queues.length() == 1, "the task is sent again")
        return
    (letter,) = eventually(
        lambda: Storage(queues.client, settings).dead_letters.latest(2), "the lost event is reported"
    )
    assert (letter.reason, letter.event_id) == ("event_expired", "n0")
    assert letter.detail.endswith("or the key holds another event now")
    assert queues.length() == 0


def test_a_long_queue_is_not_multiplied(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
) -> None:
    """Overdue messages in a queue without workers are not sent again, even after several sweeps."""
    register_handlers("t.exact")
    subscriber = start_subscriber(**HASTY)
    publish(bus, 300)
    eventually(lambda: queues.length() == 300, "all messages are queued")
    for _ in range(3):  # their due times are extended three times
        due_before = due_times(client, prefix)
        eventually(lambda before=due_before: later(due_times(client, prefix), before), "a sweep has checked all tasks")
    assert queues.length() == 300
    assert "redispatched" not in subscriber.info()


def test_a_sweep_is_bounded(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    client: Redis,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sweep over many overdue tasks is limited in time, and the next sweep continues where it ended."""
    register_handlers("t.exact")
    monkeypatch.setattr("bridge.subscriber.maintenance.rescuer._MAX_TIME_S", 0.0)
    monkeypatch.setattr("bridge.subscriber.maintenance.rescuer._ROUND_TASKS", 10)
    subscriber = start_subscriber(redispatch_after_s=2, maintenance_interval_s=0.05)
    publish(bus, 100)
    eventually(lambda: queues.length() == 100, "all messages are queued")
    before = due_times(client, prefix)
    numbers: set[int] = set()  # counts of tasks whose due time was extended

    def all_put_off() -> bool:
        now = due_times(client, prefix)
        numbers.add(sum(now[task_id] > before[task_id] for task_id in before))
        return max(numbers) == 100

    eventually(all_put_off, "all due times are extended")
    assert numbers & set(range(1, 100)), "all in one sweep"
    assert "redispatched" not in subscriber.info()


def test_a_message_lost_from_a_long_queue_is_sent_again_when_later_ones_begin(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
) -> None:
    """In a queue that is never empty, a task is sent again after one sent a lease later has started."""
    register_handlers("t.exact")
    # While the queue is empty, an overdue lost task is sent again immediately, so the later ones must be queued before.
    start_subscriber(**HASTY | {"redispatch_after_s": 2}, lease_s=0.05)
    publish(bus, 1)
    eventually(lambda: queues.length() == 1, "the first message is queued")
    lost = steal(client, prefix)
    sent_at = time.monotonic()
    eventually(lambda: time.monotonic() > sent_at + 0.1, "the lease has expired")
    publish(bus, 20, first=1)
    eventually(lambda: queues.length() >= 20, "the later messages are queued")
    begun = steal(client, prefix)
    Storage(client, settings).ledger.start_run(begun, "token", idempotent=True)
    eventually(lambda: lost in {message["headers"]["id"] for message in queues.messages()}, "it is queued again")
    assert begun not in {message["headers"]["id"] for message in queues.messages()}
    assert set(queues.tasks().values()) == {1}


def test_a_message_lost_again_and_again_becomes_a_dead_letter(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
) -> None:
    """After max_redispatches the task is given up: a dead letter with event, handler, task id and attempts."""
    register_handlers("t.exact")
    start_subscriber(**HASTY, max_redispatches=2)
    publish(bus, 1)
    letters = Storage(client, settings).dead_letters
    sent = 0

    def lose() -> bool:
        nonlocal sent
        sent += int(client.rpop(f"broker:{prefix}celery") is not None)
        return bool(letters.latest(1))

    eventually(lose, "the dead letter is written")
    assert sent == 3
    (letter,) = letters.latest(10)
    assert (letter.reason, letter.event_id, letter.handler, letter.attempts) == ("redispatch_limit", "n0", "t.exact", 3)
    assert letter.task_id == task_id_for("tests", "n0", "t.exact")
    assert Event.decode(letter.raw, max_bytes=10_000).id == "n0"
    assert not Storage(client, settings).ledger.has_ended(letter.task_id), "the message may still arrive"


def test_a_lost_message_whose_event_is_gone_becomes_a_dead_letter(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
) -> None:
    """If neither journal nor key has the event, a dead letter names it; its message could still run."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"redispatch_after_s": 1})
    task_id = lose_message_and_entry(bus, queues)
    assert client.delete(Keys(prefix).event("n0")) == 1
    letters = Storage(client, settings).dead_letters
    (letter,) = eventually(lambda: letters.latest(10), "the dead letter is written")
    assert (letter.reason, letter.event_id, letter.handler) == ("event_expired", "n0", "t.exact")
    ledger = Storage(client, settings).ledger
    (status,) = ledger.task_statuses([task_id])
    assert status.ended is None
    assert status.in_flight is not None
    assert status.in_flight.given_up == letter.dead_letter_id


def test_a_lost_message_whose_journal_entry_is_gone_is_sent_again(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, client: Redis, prefix: str
) -> None:
    """If the journal entry was deleted, the event is read from its key (chaos scenario commands, seed 5501)."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"redispatch_after_s": 1})
    task_id = lose_message_and_entry(bus, queues)
    (again,) = eventually(queues.messages, "the message is queued again")
    assert again["headers"]["id"] == task_id


def test_one_subscriber_is_the_leader_until_it_stops(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str
) -> None:
    """The first subscriber stays leader; after it stops, another is elected before the first's term would end."""
    register_handlers("t.exact")
    slow_term = {"maintenance_interval_s": 1}  # the term is three intervals
    first = start_subscriber("first", **slow_term)
    elected = Keys(prefix).leader("tests")
    eventually(lambda: client.get(elected) == b"first", "the first subscriber is elected")
    start_subscriber("second", **slow_term)
    ends = client.pexpiretime(elected)
    eventually(lambda: client.pexpiretime(elected) > ends + 1500, "the term is renewed")
    assert client.get(elected) == b"first"
    first.stop()
    assert client.get(elected) != b"first"
    eventually(lambda: client.get(elected) == b"second", "the second subscriber is elected")


def test_dead_consumers_are_removed_when_they_hold_nothing(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, client: Redis, prefix: str
) -> None:
    """Entries of a dead consumer are claimed by a live one; then the consumer is removed."""
    register_handlers("t.exact")
    journal = Keys(prefix).journal
    client.xgroup_create(journal, "tests", mkstream=True)
    publish(bus, 3)
    client.xreadgroup("tests", "dead with entries", {journal: ">"})
    client.xgroup_createconsumer(journal, "tests", "dead and idle")
    subscriber = start_subscriber(claim_idle_s=0.3, maintenance_interval_s=0.1)
    eventually(lambda: [row["name"] for row in client.xinfo_consumers(journal, "tests")] == [b"one"], "one is left")
    eventually(lambda: queues.length() == 3, "the claimed entries are dispatched")
    assert subscriber.info()["consumers_removed"] == 2


def test_a_full_queue_holds_dispatch_and_the_journal_keeps(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, client: Redis, prefix: str
) -> None:
    """At max_queue_length dispatch pauses; it resumes as workers drain the queue, and all events arrive once."""
    register_handlers("t.exact")
    subscriber = start_subscriber(max_queue_length=100, batch_size=50)
    publish(bus, 1000)
    eventually(lambda: "celery" in subscriber.info()["state"], "dispatch is paused")
    longest, taken = 0, []

    def work_off() -> bool:
        nonlocal longest
        longest = max(longest, queues.length())
        taken.extend(client.rpop(f"broker:{prefix}celery", 40) or [])
        return len(taken) >= 1000

    eventually(work_off, "all messages are sent", 40)
    assert longest < 150
    assert len(set(taken)) == len(taken) == 1000
    assert subscriber.info()["dispatch_backpressure"] > 0
    eventually(lambda: subscriber.info()["state"] == "ready", "the subscriber is ready again")

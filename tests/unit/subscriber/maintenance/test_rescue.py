"""Recovery and back-pressure: lost messages come again, waiting ones do not, full queues hold dispatch."""

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

#: Every task is overdue at once, and looked at several times a second.
HASTY = {"redispatch_after_s": 0.3, "maintenance_interval_s": 0.05}


@pytest.fixture
def bus(settings: BridgeSettings) -> EventBus:
    with EventBus(settings) as connected:
        yield connected


def publish(bus: EventBus, count: int, first: int = 0) -> None:
    bus.publish_many([Event(type="dream.created", id=f"n{number}") for number in range(first, first + count)])


def steal(client: Redis, prefix: str) -> str:
    """Take the oldest message out of the queue, as a broker that loses it; return its task id."""
    message = Queues(client, prefix).messages()[0]
    assert client.rpop(f"broker:{prefix}celery")
    return str(message["headers"]["id"])


def lose_message_and_entry(bus: EventBus, queues: Queues) -> str:
    """Dispatch one event; take its message out of the queue and its entry out of the journal; return the task id."""
    publish(bus, 1)
    eventually(lambda: queues.length() == 1, "the message")
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
    """A message that is neither in the queue nor run comes again, with the same task id, and the counter says so."""
    register_handlers("t.exact")
    subscriber = start_subscriber(**HASTY)
    publish(bus, 1)
    eventually(lambda: queues.length() == 1, "the message")
    lost = steal(client, prefix)
    again = eventually(queues.messages, "the message again")
    assert [message["headers"]["id"] for message in again] == [lost] == [task_id_for("tests", "n0", "t.exact")]
    assert again[0]["headers"]["argsrepr"] == "(<Event dream.created n0>,)"
    eventually(lambda: subscriber.info().get("redispatched") == 1, "it is counted")


def test_a_long_queue_is_not_multiplied(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
) -> None:
    """Overdue messages that wait in a queue nobody works off stay as they are, each once, for many sweeps."""
    register_handlers("t.exact")
    subscriber = start_subscriber(**HASTY)
    publish(bus, 300)
    eventually(lambda: queues.length() == 300, "the messages")
    for _ in range(3):  # put off three times over
        due_before = due_times(client, prefix)
        eventually(lambda before=due_before: later(due_times(client, prefix), before), "a sweep over all of them")
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
    """However many tasks are overdue, a call returns to dispatch in time; the next one goes on where it ended."""
    register_handlers("t.exact")
    monkeypatch.setattr("bridge.subscriber.maintenance.rescuer._MAX_TIME_S", 0.0)
    monkeypatch.setattr("bridge.subscriber.maintenance.rescuer._ROUND_TASKS", 10)
    subscriber = start_subscriber(redispatch_after_s=2, maintenance_interval_s=0.05)
    publish(bus, 100)
    eventually(lambda: queues.length() == 100, "the messages")
    before = due_times(client, prefix)
    numbers: set[int] = set()  # of those that were put off

    def all_put_off() -> bool:
        now = due_times(client, prefix)
        numbers.add(sum(now[task_id] > before[task_id] for task_id in before))
        return max(numbers) == 100

    eventually(all_put_off, "all are put off")
    assert numbers & set(range(1, 100)), "in one sweep"
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
    """In a queue that never empties, a task is missed once one that was sent a lease later has begun."""
    register_handlers("t.exact")
    # While its queue is empty, a lost one that is overdue is sent again at once: the later ones have to come before.
    start_subscriber(**HASTY | {"redispatch_after_s": 2}, lease_s=0.05)
    publish(bus, 1)
    eventually(lambda: queues.length() == 1, "the first message")
    lost = steal(client, prefix)
    sent_at = time.monotonic()
    eventually(lambda: time.monotonic() > sent_at + 0.1, "the lease is over")
    publish(bus, 20, first=1)
    eventually(lambda: queues.length() >= 20, "the later messages")
    begun = steal(client, prefix)
    Storage(client, settings).ledger.start_run(begun, "token", idempotent=True)
    eventually(lambda: lost in {message["headers"]["id"] for message in queues.messages()}, "the lost one")
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
    """After max_redispatches the event is a dead letter with handler, task id and attempts, and leaves the ledger."""
    register_handlers("t.exact")
    start_subscriber(**HASTY, max_redispatches=2)
    publish(bus, 1)
    letters = Storage(client, settings).dead_letters
    sent = 0

    def lose() -> bool:
        nonlocal sent
        sent += int(client.rpop(f"broker:{prefix}celery") is not None)
        return bool(letters.latest(1))

    eventually(lose, "a dead letter")
    assert sent == 3
    (letter,) = letters.latest(10)
    assert (letter.reason, letter.event_id, letter.handler, letter.attempts) == ("redispatch_limit", "n0", "t.exact", 3)
    assert letter.task_id == task_id_for("tests", "n0", "t.exact")
    assert Event.decode(letter.raw, max_bytes=10_000).id == "n0"
    assert Storage(client, settings).ledger.size() == 0


def test_a_lost_message_whose_event_is_gone_becomes_a_dead_letter(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    queues: Queues,
    client: Redis,
    prefix: str,
    settings: BridgeSettings,
) -> None:
    """When neither journal nor key has the event, the dead letter says which it was; should it come, it still runs."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"redispatch_after_s": 1})
    task_id = lose_message_and_entry(bus, queues)
    assert client.delete(Keys(prefix).event("n0")) == 1
    letters = Storage(client, settings).dead_letters
    (letter,) = eventually(lambda: letters.latest(10), "a dead letter")
    assert (letter.reason, letter.event_id, letter.handler) == ("event_expired", "n0", "t.exact")
    ledger = Storage(client, settings).ledger
    assert (ledger.size(), ledger.has_ended(task_id)) == (0, False)


def test_a_lost_message_whose_journal_entry_is_gone_is_sent_again(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, client: Redis, prefix: str
) -> None:
    """After the deletion of the journal, the event key serves (chaos commands, seed 5501)."""
    register_handlers("t.exact")
    start_subscriber(**HASTY | {"redispatch_after_s": 1})
    task_id = lose_message_and_entry(bus, queues)
    (again,) = eventually(queues.messages, "the message again")
    assert again["headers"]["id"] == task_id


def test_one_subscriber_is_the_leader_until_it_stops(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str
) -> None:
    """The first stays leader; when it stops, another is elected before the term of the first is over."""
    register_handlers("t.exact")
    slow_term = {"maintenance_interval_s": 1}  # its term is three times as long
    first = start_subscriber("first", **slow_term)
    elected = Keys(prefix).leader("tests")
    eventually(lambda: client.get(elected) == b"first", "the first is elected")
    start_subscriber("second", **slow_term)
    ends = client.pexpiretime(elected)
    eventually(lambda: client.pexpiretime(elected) > ends + 1500, "some rounds")
    assert client.get(elected) == b"first"
    first.stop()
    assert client.get(elected) != b"first"
    eventually(lambda: client.get(elected) == b"second", "the second is elected")


def test_dead_consumers_are_removed_when_they_hold_nothing(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, client: Redis, prefix: str
) -> None:
    """A consumer that never stopped cleanly loses its entries to the living one first, and its place after that."""
    register_handlers("t.exact")
    journal = Keys(prefix).journal
    client.xgroup_create(journal, "tests", mkstream=True)
    publish(bus, 3)
    client.xreadgroup("tests", "dead with entries", {journal: ">"})
    client.xgroup_createconsumer(journal, "tests", "dead and idle")
    subscriber = start_subscriber(claim_idle_s=0.3, maintenance_interval_s=0.1)
    eventually(lambda: [row["name"] for row in client.xinfo_consumers(journal, "tests")] == [b"one"], "one is left")
    eventually(lambda: queues.length() == 3, "what the dead one held")
    assert subscriber.info()["consumers_removed"] == 2


def test_a_full_queue_holds_dispatch_and_the_journal_keeps(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, queues: Queues, client: Redis, prefix: str
) -> None:
    """A queue of max_queue_length takes no further batch; what is worked off makes room; all events arrive once."""
    register_handlers("t.exact")
    subscriber = start_subscriber(max_queue_length=100, batch_size=50)
    publish(bus, 1000)
    eventually(lambda: "celery" in subscriber.info()["state"], "it waits")
    longest, taken = 0, []

    def work_off() -> bool:
        nonlocal longest
        longest = max(longest, queues.length())
        taken.extend(client.rpop(f"broker:{prefix}celery", 40) or [])
        return len(taken) >= 1000

    eventually(work_off, "all of them", 40)
    assert longest < 150
    assert len(set(taken)) == len(taken) == 1000
    assert subscriber.info()["dispatch_backpressure"] > 0
    eventually(lambda: subscriber.info()["state"] == "ready", "it is ready again")

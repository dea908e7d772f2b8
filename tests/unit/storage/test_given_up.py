"""Tasks that are given up while their messages may still wait: what runs, and which dead letter stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import Size
from bridge.storage.entries import EntryFilter
from bridge.storage.in_flight import Ended, InFlightTask, RunStart
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually

EVENT = Event(type="dream.created", id="e")
TASK_ID = task_id_for("tests", "e", "t.exact")
SENT = InFlightTask("t.exact", "e", "1-1", queue="celery", redispatches=5)
NONE = Size(0, 0, 0)


@pytest.fixture
def client(each_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(each_server.url) as connected:
        yield connected


@pytest.fixture
def make(client: Redis, each_server: RedisServer, prefix: str) -> Callable[..., Storage]:
    """The bus with changed settings, and one task that was sent."""

    def make_one(**changes: object) -> Storage:
        fixed = {"redis_url": each_server.url, "channel_prefix": prefix, "group": "tests"}
        storage = Storage(client, BridgeSettings.load(**fixed | changes))
        storage.ledger.acknowledge_sent([], [SENT.entry(TASK_ID)])
        return storage

    return make_one


def give_up(storage: Storage, reason: str = "redispatch_limit") -> bool:
    letter = DeadLetter.of_event(reason, "never ended", EVENT, EVENT.encode(), "t.exact", TASK_ID)
    return storage.dead_letters.end_task_with(letter, None)


def end(storage: Storage) -> None:
    storage.ledger.end(TASK_ID, Ended())


def letters(storage: Storage) -> list[str]:
    return [letter.dead_letter_id for letter in storage.dead_letters.select(EntryFilter())]


def test_a_task_given_up_has_not_ended(make: Callable[..., Storage]) -> None:
    """It has one dead letter and no done mark, and stays in the ledger, where it is no longer overdue."""
    storage = make(redispatch_after_s=0.01)
    eventually(lambda: storage.ledger.find_overdue(10), "the task is overdue")
    assert [give_up(storage) for _ in range(3)] == [True, False, False]
    (letter,) = letters(storage)
    (status,) = storage.ledger.task_statuses([TASK_ID])
    assert status == (None, False, SENT._replace(given_up=letter))
    assert (storage.ledger.size(), storage.ledger.find_overdue(10)) == (1, [])


@pytest.mark.parametrize("first", ["starts", "ends"])
def test_a_task_that_goes_on_meanwhile_is_not_given_up(make: Callable[..., Storage], first: str) -> None:
    """If a task starts or ends between the decision and its dead letter, it gets none."""
    storage = make()
    storage.ledger.start_run(TASK_ID, "run", idempotent=True)
    if first == "ends":
        end(storage)
    assert not give_up(storage)
    assert letters(storage) == []


def test_a_task_given_up_runs_when_its_message_arrives(make: Callable[..., Storage]) -> None:
    """Its start withdraws the dead letter, whose bytes are subtracted; it ends like any other task."""
    storage = make()
    give_up(storage)
    for _ in range(2):  # the reply may be lost
        assert storage.ledger.start_run(TASK_ID, "run", idempotent=True) == RunStart("started")
        assert (letters(storage), storage.dead_letters.size()) == ([], NONE)
    (status,) = storage.ledger.task_statuses([TASK_ID])
    assert status == (None, True, SENT)
    end(storage)
    assert (storage.ledger.size(), storage.ledger.has_ended(TASK_ID)) == (0, True)


def test_a_task_given_up_that_kills_its_workers(make: Callable[..., Storage]) -> None:
    """If its workers died too often before, it ends with the dead letter about that, and has no other one."""
    storage = make(lease_s=0.02, max_redispatches=1)

    def start() -> str:
        return storage.ledger.start_run(TASK_ID, "again", idempotent=True).result

    storage.ledger.start_run(TASK_ID, "first", idempotent=True)
    eventually(lambda: storage.ledger.start_run(TASK_ID, "second", idempotent=True).deaths == 1, "the first run died")
    eventually(lambda: give_up(storage), "the second run died")
    eventually(lambda: start() == "poisoned", "two workers died")
    assert letters(storage) == []
    poisoned = DeadLetter.of_event("worker_lost", "", EVENT, EVENT.encode(), "t.exact", TASK_ID)
    assert storage.dead_letters.end_task_with(poisoned, Ended())
    assert [letter.reason for letter in storage.dead_letters.select(EntryFilter())] == ["worker_lost"]
    assert storage.ledger.size() == 0


def test_a_task_is_given_up_for_the_second_time(make: Callable[..., Storage]) -> None:
    """If the run that withdrew the dead letter died too, giving up writes another one, however soon."""
    storage = make(lease_s=0.02)
    give_up(storage)
    (first,) = letters(storage)
    storage.ledger.start_run(TASK_ID, "run", idempotent=True)
    eventually(lambda: give_up(storage), "the run died")
    (second,) = letters(storage)
    assert second != first


def test_it_is_forgotten_when_the_marks_expire(make: Callable[..., Storage]) -> None:
    """After dedup_ttl_s no message of the task would start, so it leaves the ledger; its dead letter stays."""
    storage = make(event_ttl_s=1, dedup_ttl_s=2)
    give_up(storage)
    eventually(lambda: storage.ledger.find_overdue(10) == [] and storage.ledger.size() == 0, "the ledger forgets it", 5)
    assert len(letters(storage)) == 1


def test_a_retried_dead_letter_stops_the_old_task(make: Callable[..., Storage], client: Redis) -> None:
    """A replay marks the task that was given up as ended: its message does not run as well."""
    storage = make()
    give_up(storage)
    (letter,) = letters(storage)
    replays = Replays(client, storage.settings)
    assert last(replays.dead().run(FAST)).replayed == 1
    assert (replays.ids(), letters(storage), storage.ledger.size()) == (["e"], [], 0)
    assert storage.ledger.start_run(TASK_ID, "late", idempotent=True).result == "ended"
    (status,) = storage.ledger.task_statuses([TASK_ID])
    assert status.ended == Ended(letter)


@pytest.mark.parametrize("how", ["succeeded", "failed"])
def test_a_dead_letter_of_a_task_that_ended_otherwise(make: Callable[..., Storage], client: Redis, how: str) -> None:
    """A dead letter whose task has ended since, with success or another dead letter, is deleted and not replayed."""
    storage = make()
    give_up(storage)
    (obsolete,) = letters(storage)
    if how == "succeeded":
        end(storage)  # an older version starts a task without withdrawing its dead letter
    else:
        failed = DeadLetter.of_event("failure", "", EVENT, EVENT.encode(), "t.exact", TASK_ID)
        storage.dead_letters.end_task_with(failed, Ended())
    progress = last(Replays(client, storage.settings).dead(reason="redispatch_limit").run(FAST))
    assert (progress.replayed, progress.skipped) == (0, 1)
    assert obsolete not in letters(storage)
    assert len(letters(storage)) == (how == "failed")


def test_dead_letters_that_were_trimmed_by_hand(make: Callable[..., Storage], client: Redis, prefix: str) -> None:
    """After XTRIM, the bytes are counted again with the next dead letter, so none is evicted too early."""
    storage = make()
    rows = [DeadLetter("json", "", f"o{number}", b"x" * 100) for number in range(20)]

    def held() -> Size:
        stored = client.xrange(Keys(prefix).dead("tests"))
        return Size(len(stored), sum(len(value) for _, fields in stored for value in fields.values()), 0)

    storage.dead_letters.add_many(rows[:10])
    assert client.xtrim(Keys(prefix).dead("tests"), maxlen=4, approximate=False) == 6
    storage.dead_letters.add(rows[10])
    assert storage.dead_letters.size() == held()
    storage.dead_letters.drop(letters(storage)[:2])
    storage.dead_letters.add(rows[11])
    assert storage.dead_letters.size() == held()
    assert held().count == 4

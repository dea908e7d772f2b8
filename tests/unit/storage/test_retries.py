"""Retries in the ledger on a real Redis: only the try that is due starts, and no message older than the marks."""

from __future__ import annotations

import pytest
from redis import Redis

from bridge.storage.in_flight import Delivery, InFlightTask, RunStart
from bridge.storage.keys import Keys
from bridge.storage.server_time import server_ms
from bridge.testing.redis_server import RedisServer
from tests.support.ledgers import PAIR, MakeLedger, end
from tests.support.waiting import eventually


@pytest.fixture
def client(each_server: RedisServer) -> Redis:
    return Redis.from_url(each_server.url)


def test_a_released_run_lets_the_retry_begin(make: MakeLedger) -> None:
    """After a release the next run starts immediately and counts no crash; only the holder can release the lease."""
    ledger = make()
    ledger.start_run("t1", "first", idempotent=True)
    ledger.release("t1", "another", 0, retries=1)
    assert ledger.start_run("t1", "retry", idempotent=True, delivery=Delivery(1)).result == "running"
    ledger.release("t1", "first", 0, retries=1)
    assert ledger.start_run("t1", "retry", idempotent=True, delivery=Delivery(1)) == RunStart("started")


def test_a_retry_need_not_wait_for_the_run_that_sent_it(make: MakeLedger) -> None:
    """A retry may start before the run that sent it has released its lease, which that run has lost then."""
    ledger = make(lease_s=30)
    ledger.start_run("t1", "first", idempotent=True)
    retry = Delivery(1, retry_of="first")
    assert ledger.start_run("t1", "retry", idempotent=True, delivery=retry) == RunStart("started")
    ledger.release("t1", "first", 0, retries=1)
    assert ledger.start_run("t1", "copy", idempotent=True) == RunStart("superseded")
    assert ledger.start_run("t1", "copy of the retry", idempotent=True, delivery=retry).result == "running"
    assert not ledger.renew("t1", "first")
    assert ledger.renew("t1", "retry")


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "sent by hand"])
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_copy_of_an_earlier_try_does_not_start(make: MakeLedger, idempotent: bool, listed: bool) -> None:
    """Once a task is to be retried, only the try that is due starts, before and after the retry has begun."""
    ledger = make()
    if listed:
        ledger.acknowledge_sent([], [PAIR.entry("t1")])
    for number in range(3):
        run, due = f"run {number}", Delivery(number)
        assert ledger.start_run("t1", run, idempotent=idempotent, delivery=due) == RunStart("started")
        ledger.release("t1", run, 0, retries=number + 1)
        ledger.release("t1", run, 0, retries=number + 1)  # as after a lost reply
        for earlier in range(number + 1):
            copy = ledger.start_run("t1", "copy", idempotent=idempotent, delivery=Delivery(earlier))
            assert copy == RunStart("superseded")
    assert ledger.start_run("t1", "last", idempotent=idempotent, delivery=Delivery(3)) == RunStart("started")


def test_a_message_that_returns_to_its_queue_stays_due(make: MakeLedger) -> None:
    """A run that has its message delivered again, as Reject(requeue=True) does, makes room for the same try."""
    ledger = make(lease_s=30)
    ledger.start_run("t1", "first", idempotent=True)
    ledger.release("t1", "first", 0, retries=0)
    assert ledger.start_run("t1", "again", idempotent=True) == RunStart("started")


def test_only_the_run_that_sent_a_retry_hands_on_its_lease(make: MakeLedger) -> None:
    """While another run of the earlier try is in progress, a retry waits for its end, like any copy."""
    ledger = make(lease_s=30)
    ledger.start_run("t1", "restored", idempotent=True)
    for retry_of in ("crashed", ""):
        retry = Delivery(1, retry_of)
        assert ledger.start_run("t1", "retry", idempotent=True, delivery=retry).result == "running"
    assert ledger.renew("t1", "restored")


@pytest.mark.parametrize("released", [True, False])
def test_the_try_that_is_due_outlives_its_lease(make: MakeLedger, client: Redis, prefix: str, released: bool) -> None:
    """The ledger knows the try that is due too, even if the lease key expires and the release was never executed."""
    ledger = make()
    ledger.acknowledge_sent([], [PAIR.entry("t1")])
    ledger.start_run("t1", "first", idempotent=True)
    if released:
        ledger.release("t1", "first", 0, retries=1)
    else:
        ledger.start_run("t1", "retry", idempotent=True, delivery=Delivery(1, "first"))
    client.delete(Keys(prefix).lease("t1"))
    assert ledger.start_run("t1", "copy", idempotent=True) == RunStart("superseded")
    assert ledger.start_run("t1", "again", idempotent=True, delivery=Delivery(1)) == RunStart("started")


def test_the_lease_key_of_a_retry_lasts_as_long_as_copies_may_arrive(
    make: MakeLedger, client: Redis, prefix: str
) -> None:
    """It expires dedup_ttl_s after the retry is due, and the end of the task deletes it."""
    ledger = make(dedup_ttl_s=100_000)
    ledger.start_run("t1", "first", idempotent=True)
    ledger.release("t1", "first", 7_000_000, retries=1)
    assert 106_990_000 < client.pttl(Keys(prefix).lease("t1")) <= 107_000_000
    ledger.start_run("t1", "retry", idempotent=True, delivery=Delivery(1))
    assert 99_990_000 < client.pttl(Keys(prefix).lease("t1")) <= 100_000_000
    end(ledger, "t1")
    assert not client.exists(Keys(prefix).lease("t1"))


@pytest.mark.parametrize("listed", ["in time", "after the release"])
def test_a_lost_retry_is_sent_again_for_the_try_that_is_due(make: MakeLedger, listed: str) -> None:
    """A sweep returns the number of the try that is due, even if the task was listed after it was retried."""
    ledger = make(redispatch_after_s=0.05)
    delayed = PAIR._replace(delay_ms=50)
    if listed == "in time":
        ledger.acknowledge_sent([], [delayed.entry("t1")])
    ledger.start_run("t1", "first", idempotent=True)
    ledger.release("t1", "first", 0, retries=1)
    if listed == "after the release":
        ledger.acknowledge_sent([], [delayed.entry("t1")])
    (again,) = eventually(lambda: ledger.sweep_overdue(ledger.find_overdue(10), ()), "the task is overdue")
    assert again.in_flight == PAIR._replace(retries=1, retried=True)
    assert ledger.start_run("t1", "copy", idempotent=True) == RunStart("superseded")


@pytest.mark.parametrize("listed", ["before", "after the release"])
def test_a_retry_is_not_sent_again_before_it_is_due(make: MakeLedger, client: Redis, prefix: str, listed: str) -> None:
    """Not even if the task is listed, or sent again, while its retry waits: then the ledger has an earlier time."""
    ledger, delay_ms = make(redispatch_after_s=0.05, lease_s=0.05), 60_000
    if listed == "before":
        ledger.acknowledge_sent([], [PAIR.entry("t1")])
    ledger.start_run("t1", "first", idempotent=True)
    ledger.release("t1", "first", delay_ms, retries=1)
    ledger.acknowledge_sent([], [PAIR._replace(redispatches=1).entry("t1")])
    overdue = eventually(lambda: ledger.find_overdue(10), "the task is listed as overdue")
    assert ledger.sweep_overdue(overdue, ()) == []
    assert ledger.find_overdue(10) == []
    due_ms = client.zscore(Keys(prefix).inflight("tests"), "t1")
    assert due_ms is not None
    assert delay_ms - 10_000 < due_ms - server_ms(client.time()) <= delay_ms + 50
    # A retry that has started was not lost while it waited, so the ledger waits no longer for it.
    retry = Delivery(1)
    assert ledger.start_run("t1", "retry", idempotent=True, delivery=retry).result == "started"
    (again,) = eventually(lambda: ledger.sweep_overdue(ledger.find_overdue(10), ()), "the worker of the retry has died")
    assert again.in_flight.retries == 1


def test_a_retried_task_of_an_older_version_can_start(make: MakeLedger) -> None:
    """The entry of a retried task without a number, as older versions write it, lets every try start."""
    old = InFlightTask.decode(b'{"handler": "t.all", "event_id": "e1", "entry_id": "1-1", "retried": true}')
    for number in (0, 2):
        ledger = make()
        ledger.acknowledge_sent([], [old.entry(f"t{number}")])
        start = ledger.start_run(f"t{number}", "run", idempotent=True, delivery=Delivery(number))
        assert start == RunStart("started")


HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("age_ms", "known", "idempotent", "result"),
    [
        (26 * HOUR_MS, "", True, "stale"),
        (24 * HOUR_MS, "", True, "started"),
        (-HOUR_MS, "", True, "started"),
        (None, "", True, "started"),
        (26 * HOUR_MS, "listed", True, "started"),
        (26 * HOUR_MS, "retried", True, "started"),
        (26 * HOUR_MS, "running", True, "running"),
        (26 * HOUR_MS, "ended", True, "ended"),
        (26 * HOUR_MS, "", False, "started"),
    ],
)
def test_a_message_older_than_the_marks_does_not_start(
    make: MakeLedger, client: Redis, age_ms: int | None, known: str, idempotent: bool, result: str
) -> None:
    """It starts only if the ledger or the lease key shows that its task has not ended, or if copies may run."""
    ledger = make()
    if known == "listed":
        ledger.acknowledge_sent([], [PAIR.entry("t1")])
    elif known in ("retried", "running"):
        ledger.start_run("t1", "first", idempotent=True)
    elif known == "ended":
        end(ledger, "t1")
    if known == "retried":
        ledger.release("t1", "first", 0, retries=1)
    sent_ms = 0 if age_ms is None else server_ms(client.time()) - age_ms
    delivery = Delivery(1 if known == "retried" else 0, sent_ms=sent_ms)
    for _ in range(2):  # as after a lost reply
        assert ledger.start_run("t1", "token", idempotent=idempotent, delivery=delivery).result == result

"""Delays as histograms: of dispatch, from each subscriber; of task starts, from Redis."""

from __future__ import annotations

import pytest
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.storage.in_flight import InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.telemetry.counters import Delays
from tests.support.apps import StartSubscriber
from tests.support.scrape import Scrape
from tests.support.waiting import eventually


def test_histograms(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, port: int, scrape: Scrape
) -> None:
    """Buckets are cumulative, as Prometheus requires, sums are in seconds, and each group has separate series."""
    register_handlers("t.exact")
    journal = Keys(prefix).journal
    now_ms = int(client.time()[0]) * 1000
    for ago_ms in (100_000, 3000, 3000):
        event = Event(type="dream.created")
        client.xadd(journal, {"id": event.id, "type": event.type, "event": event.encode()}, id=f"{now_ms - ago_ms}-*")
    start_subscriber("one", metrics_port=port)
    start_subscriber("two", group="other")
    eventually(lambda: scrape().value("bridge_dispatch_delay_seconds_count") == 3, "three messages are counted", 5)
    page = scrape()
    buckets = page.buckets("bridge_dispatch_delay_seconds")
    assert [bound for bound, _ in buckets] == sorted(bound for bound, _ in buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[0][0] == 0.001
    assert buckets[-1] == (float("inf"), 3)
    by_bound = dict(buckets)
    assert (by_bound[2.048], by_bound[8.192], by_bound[65.536], by_bound[131.072]) == (0, 2, 2, 3)
    assert 106 <= (page.value("bridge_dispatch_delay_seconds_sum") or 0) < 115
    assert {one.labels["group"] for one in page.samples if one.name == "bridge_task_start_delay_seconds_count"} == {
        "tests",
        "other",
    }


def test_delays_fall_into_their_classes() -> None:
    """A bucket ends at 2 to the power of n ms, inclusive; zero and negative delays are in the first."""
    delays = Delays()
    for ms in (-5, 0, 1, 2, 3, 4, 5, 1024, 1025):
        delays.add(ms, 2)
    assert delays.counts == {0: 6, 1: 2, 2: 4, 3: 2, 10: 2, 11: 2}
    assert delays.sum_ms == 2 * (1 + 2 + 3 + 4 + 5 + 1024 + 1025)


@pytest.mark.parametrize("ms", [0, 1, 2, 3, 4, 5, 7, 8, 9, 1000, 1024, 1025, 70_000_000])
def test_redis_and_python_choose_the_same_class(client: Redis, settings: BridgeSettings, ms: int) -> None:
    """The script that counts task starts chooses the same bucket as Delays."""
    keys = Keys(settings.channel_prefix)
    ledger = Storage(client, settings).ledger

    def counted() -> dict[str, int]:
        client.delete(keys.starts("tests"), keys.lease("t"))
        seconds, microseconds = client.time()
        entry = f"{seconds * 1000 + microseconds // 1000 - ms}-0"
        ledger.acknowledge_sent([], [InFlightTask("t.all", "e", entry, "celery").entry("t")])
        ledger.start_run("t", "run", idempotent=True)
        stored = {name.decode(): int(value) for name, value in client.hgetall(keys.starts("tests")).items()}
        return stored if stored.pop("ms") == ms else {}

    stored = eventually(counted, "the task started in the intended millisecond")
    expected = Delays()
    expected.add(ms, 1)
    assert stored == {str(exponent): count for exponent, count in expected.counts.items()}

"""Short runs of each kind of benchmark, because `make bench` takes a quarter of an hour."""

from __future__ import annotations

import pytest

from benchmarks import flood, ours, peers
from benchmarks.__main__ import LOOP, show_backlog, show_flood, show_latencies, show_rates
from bridge.testing.redis_server import RedisServer


def test_peers(own_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The alternatives send every event, and the table shows their medians and ratios."""
    rates = {
        LOOP: [peers.hand_written_loop(own_server, 50)],
        "FastStream": [peers.faststream_handler(own_server, 50)],
        "apply_async": [peers.apply_async(own_server, 50)],
        "not installed": [None],
    }
    show_rates(rates)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[2].startswith(f"| {LOOP} |")
    assert lines[2].endswith("| 1.0 |")


@pytest.mark.parametrize("broker", ours.BROKERS)
def test_dispatch(own_server: RedisServer, broker: str) -> None:
    """Every event of a backlog becomes a message for each handler."""
    assert ours.dispatch(own_server, 3000, handlers=2, broker=broker) > 0


def test_publishing_and_intake(own_server: RedisServer) -> None:
    """Events are published one by one, in a task, in batches, and by another program."""
    assert ours.publish(own_server, 20) > 0
    assert ours.publish(own_server, 20, in_task=True) > 0
    assert ours.publish_many(own_server, 50) > 0
    assert ours.external_events(own_server, 2000, 2) > 0


def test_latency_and_backlog(own_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Delayed round trips are visible in the latency; after the tenths of a backlog, no event is left."""
    show_latencies(
        {
            "delayed": [ours.latency(own_server, 50, 2, rtt_ms=20)],
            "task": [ours.latency(own_server, 50, 2, to_task=True)],
        }
    )
    tenths = ours.backlog(own_server, 5000)
    show_backlog({"backlog": [tenths]})
    assert len(tenths) == 10
    assert tenths[-1].left <= 0
    assert float(capsys.readouterr().out.splitlines()[2].split("|")[2]) > 20


def test_flood(own_server: RedisServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The latency of valid events is measured during a flood of hostile messages, which are rejected."""
    flooded = flood.flood(own_server, 2, 200, valid_per_s=50)
    show_flood({"few": [flooded]})
    assert 400 < flooded.dead_letters <= flooded.hostile
    assert capsys.readouterr().out.splitlines()[2].startswith("| few | ")

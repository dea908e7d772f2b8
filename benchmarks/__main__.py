"""Run the benchmarks and print them as tables: ``python -m benchmarks [--rounds 3] [--only dispatch] [--json FILE]``.

The alternatives run in turn, for several rounds, on one private Redis; each row is the median of its rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import flood, ours, peers, scaling
from benchmarks.setting import event
from bridge.testing.redis_server import RedisServer

Row = Callable[[RedisServer], Any]

LOOP = "hand-written loop: psubscribe, SET NX, delay()"
#: Size of the task message of an event of 200 bytes.
_MESSAGE_BYTES = 1250

SPEED: dict[str, Row] = {
    LOOP: lambda server: peers.hand_written_loop(server, 3000),
    "FastStream handler that calls delay()": lambda server: peers.faststream_handler(server, 3000),
    "apply_async() alone": lambda server: peers.apply_async(server, 3000),
    "bridge, any other broker: portable path": lambda server: ours.dispatch(server, 60_000, broker="any other"),
    "bridge, broker in another Redis": lambda server: ours.dispatch(server, 100_000, broker="another Redis"),
    "bridge, broker in the Redis of the bus": lambda server: ours.dispatch(server, 200_000),
    "bridge, the same, in the default configuration": lambda server: ours.dispatch(server, 100_000, listens=True),
    "redis-benchmark LPUSH, 1 client, 500 per round trip": lambda server: peers.redis_benchmark(
        server, _MESSAGE_BYTES, 500, 1
    ),
    "redis-benchmark LPUSH, 50 clients, 16 per round trip": lambda server: peers.redis_benchmark(
        server, _MESSAGE_BYTES, 16, 50
    ),
    "events of other programs, 1 subscriber": lambda server: ours.external_events(server, 100_000, 1),
    "events of other programs, 2 subscribers": lambda server: ours.external_events(server, 100_000, 2),
    "events of other programs, 4 subscribers": lambda server: ours.external_events(server, 100_000, 4),
    "publish_event()": lambda server: ours.publish(server, 5000),
    "publish_event() in a task": lambda server: ours.publish(server, 5000, in_task=True),
    "publish_many()": lambda server: ours.publish_many(server, 40_000),
}
SIZES: dict[str, Row] = {
    "payload of 200 B": lambda server: ours.dispatch(server, 100_000),
    "payload of 2 kB": lambda server: ours.dispatch(server, 40_000, size=2000),
    "payload of 20 kB": lambda server: ours.dispatch(server, 5_000, size=20_000),
    "1 handler": lambda server: ours.dispatch(server, 100_000, handlers=1),
    "5 handlers": lambda server: ours.dispatch(server, 40_000, handlers=5),
    "20 handlers": lambda server: ours.dispatch(server, 10_000, handlers=20),
}
LATENCY: dict[str, Row] = {
    "to the queue, idle": lambda server: ours.latency(server, 10, 15),
    "to the queue, 200/s": lambda server: ours.latency(server, 200, 10),
    "to the queue, 2,000/s": lambda server: ours.latency(server, 2000, 5),
    "to the queue, 200/s, round trips of 2 ms": lambda server: ours.latency(server, 200, 10, rtt_ms=2),
    "to the start of the task, idle": lambda server: ours.latency(server, 10, 15, to_task=True),
    "to the start of the task, 200/s": lambda server: ours.latency(server, 200, 10, to_task=True),
    "to the start of the task, 2,000/s": lambda server: ours.latency(server, 2000, 5, to_task=True),
}
BACKLOG: dict[str, Row] = {"backlog": lambda server: ours.backlog(server, 1_000_000)}
FLOOD: dict[str, Row] = {
    "none": lambda server: flood.flood(server, 60, 0),
    "1,000 per second": lambda server: flood.flood(server, 60, 1000),
}
PARTS = {
    "speed": (SPEED, 3),
    "sizes": (SIZES, 3),
    "latency": (LATENCY, 3),
    "backlog": (BACKLOG, 1),
    "flood": (FLOOD, 1),
    "scaling": (scaling.ROWS, 3),
}


def measure(rows: dict[str, Row], rounds: int) -> dict[str, list[Any]]:
    """Run all rows in turn, *rounds* times; return the results of each row."""
    results: dict[str, list[Any]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            with RedisServer() as server:
                results[name].append(row(server))
            gc.collect()
    return results


def show_rates(results: dict[str, list[float | None]]) -> None:
    """Print medians, their range, and ratios to the hand-written loop."""
    loop = statistics.median(results[LOOP]) if LOOP in results else None  # type: ignore[type-var]
    print("| | per second | lowest to highest |" + (" times the loop |" if loop else ""))
    print("|---|---|---|" + ("---|" if loop else ""))
    for name, values in results.items():
        rates = [value for value in values if value is not None]
        if rates:
            median = statistics.median(rates)
            ratio = f" {median / loop:.1f} |" if loop else ""
            print(f"| {name} | {median:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} |{ratio}")


def show_latencies(results: dict[str, list[ours.Latency]]) -> None:
    """Print the median of each quantile."""
    print("| from publish_event() | p50 ms | p99 ms | max ms |\n|---|---|---|---|")
    for name, values in results.items():
        cells = " | ".join(f"{statistics.median(column):.2f}" for column in zip(*values, strict=True))
        print(f"| {name} | {cells} |")


def show_backlog(results: dict[str, list[list[ours.Drained]]]) -> None:
    """Print one line for each tenth of the backlog."""
    print("| events left | events per second | RSS, MB |\n|---|---|---|")
    for tenth in results["backlog"][0]:
        print(f"| {tenth.left:,} | {tenth.per_s:,.0f} | {tenth.rss_mb:.0f} |")


def show_flood(results: dict[str, list[flood.Flooded]]) -> None:
    """Print the latencies of valid events, the dead letters and the memory."""
    memories = "subscriber memory, MB | Redis memory, MB"
    print(f"| hostile messages | p50 ms | p99 ms | max ms | dead letters | {memories} |\n|---|---|---|---|---|---|---|")
    for name, values in results.items():
        for one in values:
            latency = " | ".join(f"{ms:.1f}" for ms in one.latency)
            memory = " | ".join(f"{first:.0f} to {last:.0f}" for first, last in (one.rss_mb, one.redis_mb))
            print(f"| {name} | {latency} | {one.dead_letters:,} | {memory} |")


SHOW = {
    "speed": show_rates,
    "sizes": show_rates,
    "latency": show_latencies,
    "backlog": show_backlog,
    "flood": show_flood,
    "scaling": scaling.show,
}


def main() -> None:
    """Read the command line, measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, help="number of rounds of each part")
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part only; can be repeated")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"), help="file for the results")
    options = parser.parse_args()
    with RedisServer() as server:
        about = ours.machine(server) | {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
    print(", ".join(f"{name} {value}" for name, value in about.items()), f"- event size {len(event(0).encode())} bytes")
    everything: dict[str, Any] = {"machine": about}
    for part in options.only or PARTS:
        rows, rounds = PARTS[part]
        results = everything[part] = measure(rows, options.rounds or rounds)
        print(f"\n{part}\n", flush=True)
        SHOW[part](results)  # type: ignore[operator]  # each prints the results of its part
    options.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()

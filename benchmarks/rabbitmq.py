"""RabbitMQ as broker: ``python -m benchmarks.rabbitmq``. Needs a rabbitmq-server; starts a private node."""

from __future__ import annotations

import statistics
import time
from typing import Any

from celery import Celery

from benchmarks.ours import SUBSCRIBE
from benchmarks.setting import QUEUE, fill, payload, processes, rate_of
from bridge.testing.redis_server import RedisServer
from tests.support.servers.rabbitmq import RabbitNode, find_programs

_ROUNDS = 3
#: Arguments of the queue, by value of ``task_default_queue_type``.
_ARGUMENTS: dict[str, dict[str, str] | None] = {"classic": None, "quorum": {"x-queue-type": "quorum"}}


def _clean(node: RabbitNode, kind: str) -> Any:
    """Return a channel of a new connection; the queue is new and empty."""
    channel = node.connect().channel()
    channel.queue_delete(QUEUE)
    channel.queue_declare(QUEUE, durable=True, auto_delete=False, arguments=_ARGUMENTS[kind])
    return channel


def apply_async(node: RabbitNode, kind: str, count: int) -> float:
    """apply_async() with ``confirm_publish``, which waits for each message: messages per second."""
    channel = _clean(node, kind)
    with Celery("peer", broker=node.url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"confirm_publish": True}
        app.conf.task_default_queue_type = kind

        @app.task(name="handler0", shared=False)
        def handle(event: dict[str, Any]) -> None: ...

        handle.apply_async((payload(200),))
        began_at = time.perf_counter()
        for _ in range(count):
            handle.apply_async((payload(200),))
        seconds = time.perf_counter() - began_at
    channel.connection.close()
    return count / seconds


def dispatch(server: RedisServer, node: RabbitNode, kind: str, count: int) -> float:
    """A backlog from journal to queue by one subscriber: events per second."""
    fill(server.url, count)
    channel = _clean(node, kind)
    environment = {"BENCH_BROKER_URL": node.url, "BENCH_QUEUE_TYPE": kind, "BENCH_PUBSUB": "0"}
    with processes(server.url, SUBSCRIBE, **environment):
        per_s = rate_of(lambda: int(channel.queue_declare(QUEUE, passive=True).message_count), count, 0.02)
    channel.connection.close()
    return per_s


def main() -> None:
    """Print the medians as a table."""
    programs = find_programs()
    if programs is None:
        raise SystemExit("rabbitmq-server is not installed: apt-get install rabbitmq-server")
    print("| | per second | lowest to highest |\n|---|---|---|")
    with RabbitNode(programs) as node:
        for kind in _ARGUMENTS:
            each = [apply_async(node, kind, 1000) for _ in range(_ROUNDS)]
            ours = []
            for _ in range(_ROUNDS):
                with RedisServer() as server:
                    ours.append(dispatch(server, node, kind, 30_000))
            for name, rates in (("apply_async(), each confirmed", each), ("bridge, a batch confirmed", ours)):
                middle, lowest, highest = statistics.median(rates), min(rates), max(rates)
                print(f"| {name}, {kind} queue | {middle:,.0f} | {lowest:,.0f} to {highest:,.0f} |")


if __name__ == "__main__":
    main()

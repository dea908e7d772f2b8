"""The Celery application of the processes that the benchmarks start."""

from __future__ import annotations

import os
import time

from celery import Celery
from redis import Redis

import bridge
from benchmarks.setting import PREFIX, STARTS
from bridge import Event, on_event

app = Celery("bench", broker=os.environ.get("BENCH_BROKER_URL"))
app.conf.update(
    broker_transport_options={"socket_timeout": 10.0},
    broker_transport=os.environ.get("BENCH_TRANSPORT") or None,
    bridge_channel_prefix=PREFIX,
    bridge_enable_pubsub=os.environ.get("BENCH_PUBSUB", "1") == "1",
    task_default_queue_type=os.environ.get("BENCH_QUEUE_TYPE", "classic"),
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
bridge.install(app)
_clients: dict[int, Redis] = {}


def _handle(event: Event) -> None:
    delay_ns = time.time_ns() - event.payload.get("at_ns", 0)
    client = _clients.setdefault(os.getpid(), Redis.from_url(os.environ["REDIS_URL"]))
    client.rpush(STARTS, delay_ns)


for number in range(int(os.environ.get("BENCH_HANDLERS", "1"))):
    on_event("dream.*", name=f"handler{number}")(_handle)

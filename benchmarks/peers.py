"""The alternatives, each used as its own documentation shows."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
from itertools import islice
from typing import Any

from celery import Celery
from faststream import FastStream
from faststream.redis import RedisBroker
from redis import Redis

from benchmarks.setting import PREFIX, event, external
from bridge.testing.redis_server import RedisServer

CHANNEL = f"{PREFIX}dream.created"


def _task(url: str) -> Any:
    app = Celery("peer", broker=url, set_as_current=False)

    @app.task(name="handler0", shared=False)
    def handle(event: dict[str, Any]) -> None: ...

    return handle


def hand_written_loop(server: RedisServer, count: int) -> float:
    """psubscribe, SET NX, delay(): events per second."""
    handler = _task(server.url)
    with Redis.from_url(server.url) as client:
        client.flushall()
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        pubsub.psubscribe(f"{PREFIX}*")
        pubsub.get_message(timeout=1)
        with client.pipeline(transaction=False) as pipe:
            for number in range(count):
                pipe.publish(CHANNEL, external(number))
            pipe.execute()
        began_at = time.perf_counter()
        for message in islice(pubsub.listen(), count):
            event = json.loads(message["data"])
            if client.set(f"seen:{event['id']}", 1, nx=True, ex=86_400):
                handler.delay(event)
        seconds = time.perf_counter() - began_at
        pubsub.close()
        assert client.llen("celery") == count
    return count / seconds


def faststream_handler(server: RedisServer, count: int) -> float:
    """A FastStream subscriber that calls delay(): events per second."""
    handler = _task(server.url)
    broker = RedisBroker(server.url, logger=None)
    app = FastStream(broker, logger=None)
    seconds = 0.0

    @broker.subscriber(CHANNEL)
    async def handle(event: dict[str, Any]) -> None:
        nonlocal handled
        handler.delay(event)
        handled += 1
        if handled == count:
            app.exit()

    async def run() -> float:
        @app.after_startup
        async def publish() -> None:
            nonlocal began_at
            with Redis.from_url(server.url) as client, client.pipeline(transaction=False) as pipe:
                for number in range(count):
                    pipe.publish(CHANNEL, external(number))
                pipe.execute()
            began_at = time.perf_counter()

        began_at = 0.0
        await app.run()
        return time.perf_counter() - began_at

    handled = 0
    with Redis.from_url(server.url) as client:
        client.flushall()
        seconds = asyncio.run(run())
        assert client.llen("celery") == count
    return count / seconds


def apply_async(server: RedisServer, count: int) -> float:
    """apply_async() with an event that exists already: messages per second."""
    handler = _task(server.url)
    argument = event(0).to_dict()
    with Redis.from_url(server.url) as client:
        client.flushall()
        handler.apply_async((argument,))
        began_at = time.perf_counter()
        for _ in range(count):
            handler.apply_async((argument,))
        seconds = time.perf_counter() - began_at
        assert client.llen("celery") == count + 1
    return count / seconds


def redis_benchmark(server: RedisServer, size: int, pipeline: int, clients: int) -> float | None:
    """LPUSH of values of *size* bytes by redis-benchmark: commands per second; None when it is not installed."""
    program = shutil.which("redis-benchmark")
    if program is None:
        return None
    with Redis.from_url(server.url) as client:
        client.flushall()
    options = ["-p", server.port, "-t", "lpush", "-n", 300_000, "-d", size, "-P", pipeline, "-c", clients, "-q"]
    output = subprocess.run([program, *map(str, options)], capture_output=True, text=True, check=True).stdout
    return float(re.findall(r"([\d.]+) requests per second", output)[-1])

"""Which queues the workers of a group take tasks from: each worker reports that every few seconds.

RabbitMQ knows the consumers of a queue, but Redis does not: to it, a worker is a client that waits for a list. A worker
that crashes stops reporting. Workers of earlier versions, and those without ``bridge.install()``, do not report, so
without a report it is not certain that no worker takes from a queue.

Times are those of the Redis server, so clocks of hosts that differ do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis

from bridge.storage.keys import Keys
from bridge.storage.lua import script
from bridge.storage.presence import DEAD_AFTER_S
from bridge.storage.server_time import server_ms

#: How long the last report of a worker is kept.
_FORGET_MS = 60_000
#: Most queues that one worker reports.
_MAX_QUEUES = 1000


@dataclass(frozen=True)
class WorkerQueues:
    """The last report of a live worker.

    Arguments:
        group: Its group.
        broker: Identifies its broker, see ``bridge.broker.broker_id``: other brokers have queues of the same names.
        queues: Names of the queues that it takes tasks from.
    """

    group: str
    broker: str
    queues: frozenset[str]


class Workers:
    """The workers of all groups. The methods raise redis-py's errors as they come.

    Arguments:
        client: Connected to the bus.
        group: The group of the workers that report.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, group: str, keys: Keys) -> None:
        self._client = client
        self._group = group
        self._keys = keys
        self._report = script(client, "report_worker")

    def report(self, name: str, broker: str, queues: Iterable[str]) -> None:
        """Record the queues that the worker of this name takes tasks from."""
        report = {"broker": broker, "queues": sorted(queues)[:_MAX_QUEUES]}
        self._report(keys=[self._keys.workers(self._group)], args=[name, json.dumps(report), _FORGET_MS])

    def leave(self, name: str) -> None:
        """Record that a worker stops."""
        self._client.hdel(self._keys.workers(self._group), name)

    def alive(self, groups: Collection[str]) -> list[WorkerQueues]:
        """Return the live workers of some groups, in one round trip. Forget those of this group that died."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            for group in groups:
                pipe.hgetall(self._keys.workers(group))
            time, *replies = pipe.execute()
        now_ms = server_ms(time)
        found: list[WorkerQueues] = []
        dead: list[bytes] = []
        for group, rows in zip(groups, replies, strict=True):
            for name, value in rows.items():
                at_ms, _, text = value.partition(b" ")
                with suppress(ValueError, TypeError, KeyError):  # another program may have written it
                    age_ms = now_ms - int(at_ms)
                    if age_ms <= DEAD_AFTER_S * 1000:
                        found.append(_read(group, json.loads(text)))
                    elif age_ms > _FORGET_MS and group == self._group:
                        dead.append(name)
        if dead:
            self._client.hdel(self._keys.workers(self._group), *dead)
        return found


def _read(group: str, report: Any) -> WorkerQueues:
    return WorkerQueues(group, str(report["broker"]), frozenset(map(str, report["queues"])))

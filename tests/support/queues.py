"""The task messages that are queued in Redis."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from redis import Redis


@dataclass
class Queues:
    """The broker's queues of this test."""

    client: Redis
    prefix: str
    key_prefix: str = "broker:"

    def messages(self, queue: str = "celery") -> list[dict[str, Any]]:
        """Return the task messages in a queue, oldest first."""
        return [
            json.loads(raw) for raw in reversed(self.client.lrange(f"{self.key_prefix}{self.prefix}{queue}", 0, -1))
        ]

    def length(self, queue: str = "celery") -> int:
        return int(self.client.llen(f"{self.key_prefix}{self.prefix}{queue}"))

    def tasks(self, queue: str = "celery") -> Counter[str]:
        """Return how often each task is queued with each event: ``{"t.all dream.created 7": 1}``."""
        headers = [message["headers"] for message in self.messages(queue)]
        return Counter(f"{header['task']} {header['argsrepr'][8:-3]}" for header in headers)

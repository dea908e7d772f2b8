"""One bus with workers, and the effects of its tasks."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any

from redis import Redis

from bridge import BridgeSettings
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.processes import Processes
from tests.support.queues import Queues
from tests.support.waiting import eventually

#: A lease expires after a second, and a message counts as lost after two.
FAST = {
    "BRIDGE_LEASE_S": "1",
    "BRIDGE_REDISPATCH_AFTER_S": "2",
    "BRIDGE_MAINTENANCE_INTERVAL_S": "0.2",
    "BRIDGE_MAX_REDISPATCHES": "2",
}

#: Entries are claimed after a second; crashed runs and lost messages are noticed within a few seconds.
QUICK_RECOVERY = {
    "BRIDGE_CLAIM_IDLE_S": "1",
    "BRIDGE_MAINTENANCE_INTERVAL_S": "0.3",
    "BRIDGE_LEASE_S": "1",
    "BRIDGE_REDISPATCH_AFTER_S": "3",
    "TEST_VISIBILITY_TIMEOUT_S": "2",
}


class Site:
    """One bus with workers, and the results of its events."""

    def __init__(self, processes: Processes, settings: BridgeSettings, client: Redis) -> None:
        self.processes = processes
        self.prefix = settings.channel_prefix
        self.client = client
        self.queues = Queues(client, self.prefix)
        self.letters = Storage(client, settings).dead_letters
        self.ledger = Storage(client, settings).ledger

    def effects(self) -> Counter[str]:
        return Counter(value.decode() for value in self.client.lrange(f"{self.prefix}effects", 0, -1))

    def worker(self, name: str = "w1", *arguments: str, **environment: str) -> Any:
        return self.processes.worker(name, *arguments, **FAST | environment)

    def lease(self, event_id: str, handler: str) -> str:
        return Keys(self.prefix).lease(task_id_for("tests", event_id, f"tests.app.{handler}"))

    def deliver_again(self) -> None:
        """Queue a copy of the one message that a worker has taken, as a broker does that considers it lost."""
        (message,) = self.taken()
        message["properties"]["delivery_tag"] = str(uuid.uuid4())
        self.client.lpush(f"broker:{self.prefix}celery", json.dumps(message))

    def wait_for_request(self) -> None:
        """Wait until a worker requests the next message; the request blocks for up to a second."""
        with self.client.monitor() as monitor:
            requests = (one["command"].split() for one in monitor.listen())
            next(words for words in requests if words[:1] == ["BRPOP"] and f"broker:{self.prefix}celery" in words)

    def taken(self) -> list[dict[str, Any]]:
        """Return the messages that workers have taken and not acknowledged."""
        return [json.loads(raw)[0] for raw in self.client.hvals(f"broker:{self.prefix}unacked")]

    def letter(self) -> DeadLetter:
        (letter,) = eventually(lambda: self.letters.latest(10), "there is a dead letter", 40)
        return letter

    def nothing_left(self) -> bool:
        unacked = self.client.hlen(f"broker:{self.prefix}unacked")
        return not (self.ledger.size() or self.queues.length() or unacked)


class Effects:
    """The effects of the handlers of ``tests/app.py``."""

    def __init__(self, client: Redis, prefix: str) -> None:
        self._client, self._key = client, f"{prefix}effects"

    def all(self) -> Counter[str]:
        return Counter(value.decode() for value in self._client.lrange(self._key, 0, -1))

    def wait_for(self, *expected: str, timeout_s: float = 30) -> None:
        eventually(lambda: set(expected) <= set(self.all()), f"effects {expected}", timeout_s)

"""Events of one test, and what becomes of them where bus and broker are one Redis."""

from __future__ import annotations

from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.queues import Queues
from tests.support.waiting import eventually


class Backlog:
    """Events of one test: published, and looked for in journal, group, ledger and queue."""

    def __init__(self, bus: EventBus, client: Redis, settings: BridgeSettings, queues: Queues) -> None:
        self.bus, self.client, self.queues = bus, client, queues
        self.journal = Keys(settings.channel_prefix).journal
        self.ledger = Storage(client, settings).ledger

    def publish(self, count: int, name: str = "n", type: str = "a.b") -> None:
        self.bus.publish_many([Event(type=type, id=f"{name}{number}") for number in range(count)])

    def ids(self) -> list[str]:
        """In the order of the journal."""
        return [fields[b"id"].decode() for _, fields in self.client.xrange(self.journal)]

    def sent(self) -> list[str]:
        """Ids of the events whose messages are in the queue, first in first."""
        return [message["headers"]["argsrepr"][8:-3].split()[1] for message in self.queues.messages()]

    def pending(self) -> int:
        return self.client.xpending(self.journal, "tests")["pending"]

    def unacknowledged(self) -> bool:
        """Whether the group has all that was read from the journal still to do."""
        (group,) = self.client.xinfo_groups(self.journal)
        read = self.client.xrange(self.journal, "-", group["last-delivered-id"])
        return group["pending"] == len(read) > 0

    def all_once(self) -> None:
        """Wait until nothing is left to do, and see each event in the queue once, and each task listed."""
        ids = self.ids()
        eventually(lambda: self.queues.length() >= len(ids) and not self.pending(), f"{len(ids)} messages")
        assert sorted(self.sent()) == sorted(ids)
        assert self.ledger.size() == len(ids)

"""The events of one test, and their task messages when bus and broker are the same Redis."""

from __future__ import annotations

from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.queues import Queues
from tests.support.waiting import eventually


class Backlog:
    """The events of one test, as found in the journal, the consumer group, the ledger and the queue."""

    def __init__(self, bus: EventBus, client: Redis, settings: BridgeSettings, queues: Queues) -> None:
        self.bus, self.client, self.queues = bus, client, queues
        self.journal = Keys(settings.channel_prefix).journal
        self.ledger = Storage(client, settings).ledger

    def publish(self, count: int, name: str = "n", type: str = "a.b") -> None:
        self.bus.publish_many([Event(type=type, id=f"{name}{number}") for number in range(count)])

    def ids(self) -> list[str]:
        """Return the event ids in the order of the journal."""
        return [fields[b"id"].decode() for _, fields in self.client.xrange(self.journal)]

    def sent(self) -> list[str]:
        """Return the ids of the events whose messages are in the queue, oldest first."""
        return [message["headers"]["argsrepr"][8:-3].split()[1] for message in self.queues.messages()]

    def pending(self) -> int:
        return self.client.xpending(self.journal, "tests")["pending"]

    def unacknowledged(self) -> bool:
        """Return whether every entry that the group has read is still pending."""
        (group,) = self.client.xinfo_groups(self.journal)
        read = self.client.xrange(self.journal, "-", group["last-delivered-id"])
        return group["pending"] == len(read) > 0

    def all_once(self) -> None:
        """Wait until nothing is pending; assert that each event is in the queue once and in the ledger."""
        ids = self.ids()
        eventually(
            lambda: self.queues.length() >= len(ids) and not self.pending(),
            f"{len(ids)} messages are queued and none is pending",
        )
        assert sorted(self.sent()) == sorted(ids)
        assert self.ledger.size() == len(ids)

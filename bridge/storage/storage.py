"""What the bridge keeps in Redis for one group, as one argument."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis

from bridge.config import BridgeSettings
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.event_keys import EventKeys
from bridge.storage.journal import Journal
from bridge.storage.ledger import Ledger


@dataclass(frozen=True)
class Storage:
    """The journal, the ledger and the dead letters that one group sees, the event keys, and the client of all."""

    client: Redis
    event_keys: EventKeys
    journal: Journal
    ledger: Ledger
    dead_letters: DeadLetters

    @classmethod
    def of(cls, client: Redis, settings: BridgeSettings) -> Storage:
        """Return those of the group in *settings*."""
        return cls(
            client,
            EventKeys(client, settings),
            Journal(client, settings),
            Ledger(client, settings),
            DeadLetters(client, settings),
        )

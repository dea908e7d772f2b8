"""What the bridge keeps in Redis for one group, as one argument."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis

from bridge.dead_letters import DeadLetters
from bridge.journal import Journal
from bridge.ledger import Ledger
from bridge.settings import BridgeSettings


@dataclass(frozen=True)
class Stores:
    """The journal, the ledger and the dead letters that one group sees, and the client that they use."""

    client: Redis
    journal: Journal
    ledger: Ledger
    dead_letters: DeadLetters

    @classmethod
    def of(cls, client: Redis, settings: BridgeSettings) -> Stores:
        """Return those of the group in *settings*."""
        return cls(client, Journal(client, settings), Ledger(client, settings), DeadLetters(client, settings))

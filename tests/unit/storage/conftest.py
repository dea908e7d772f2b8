"""Fixtures for tests of the storage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from bridge import BridgeSettings
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ledger
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.ledgers import MakeLedger


@pytest.fixture
def make(each_server: RedisServer, client: Redis, prefix: str) -> Iterator[MakeLedger]:
    """Create a ledger with changed settings."""

    def make_one(**changes: object) -> Ledger:
        fixed = {"redis_url": each_server.url, "channel_prefix": prefix, "group": "tests"}
        return Storage(client, BridgeSettings.load(**fixed | changes)).ledger

    client.xgroup_create(Keys(prefix).journal, "tests", mkstream=True)
    yield make_one
    client.close()

"""The subscribers of a bus, seen from Redis."""

from __future__ import annotations

from redis import Redis
from redis.exceptions import ResponseError

from bridge.storage.keys import Keys


def subscribers(client: Redis, prefix: str) -> int:
    """Return the number of subscribers that are subscribed and read the journal."""
    keys = Keys(prefix)
    try:
        consumers = len(client.xinfo_consumers(keys.journal, "tests"))
    except ResponseError:  # no journal or no group yet
        return 0
    ((_, listening),) = client.pubsub_numsub(keys.heartbeat)
    return min(consumers, listening)

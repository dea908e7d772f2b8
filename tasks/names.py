"""Names of the keys that the example handlers use in the Redis of the bus."""

from __future__ import annotations

from bridge import get_bus


def key(name: str) -> str:
    """Return the name of a key with the hash tag of the bus, so that in a Redis Cluster it is on the same node."""
    return f"{{{get_bus().settings.channel_prefix}}}dreams:{name}"

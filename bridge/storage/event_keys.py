"""The event keys of a bus: ``{prefix}event:{id}``, which every program on the bus writes and reads.

Their names are part of the wire format and have no hash tag. So in a Redis Cluster they are spread over all primaries,
while the bridge's own keys are on one. No other module reads or writes event keys, except the script that publishes
where all keys are on one server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException

from bridge.config import BridgeSettings
from bridge.events import EncodedEvent
from bridge.redis import cluster_of, heals_by_waiting, is_wrong_type, servers_of
from bridge.storage.keys import Keys

_SCAN_COUNT = 1000


class EventKeys:
    """The event keys of one bus.

    Arguments:
        client: Connected to the bus.
        settings: Group, lifetime and size.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, settings: BridgeSettings, keys: Keys) -> None:
        self._client = client
        self._cluster = cluster_of(client)
        self._settings = settings
        self._keys = keys

    @property
    def on_other_servers(self) -> bool:
        """Whether they are on other servers than the journal, so that no script can write both."""
        return self._cluster is not None

    def get(self, event_id: str) -> bytes | None:
        """Return the value of one key; None when the key does not exist.

        Raises:
            RedisError: Redis does not answer, or the key does not hold a string (a ResponseError, ``WRONGTYPE``).
        """
        value: Any = self._replies([("GET", self._keys.event(event_id))])[0]
        if isinstance(value, Exception):
            raise value
        return None if value is None else bytes(value)

    def get_many(self, event_ids: Sequence[str]) -> dict[str, bytes]:
        """Return the values of the keys that exist and hold strings, by event id.

        Raises:
            RedisError: A server does not answer, or refuses the command.
        """
        values = self._replies([("GET", self._keys.event(event_id)) for event_id in event_ids])
        _raised([value for value in values if not is_wrong_type(value)])
        return {event_id: value for event_id, value in zip(event_ids, values, strict=True) if isinstance(value, bytes)}

    def read_prefixes(
        self, names: Sequence[bytes | str], max_bytes: Sequence[int] | None = None
    ) -> list[tuple[Any, Any]]:
        """Return for each key its value, cut off one byte after a maximum, and its TTL in ms.

        An error of one key is returned in the place of its values.

        Arguments:
            max_bytes: A lower maximum for each key than that of an event.
        """
        largest = self._settings.max_event_bytes
        commands: list[tuple[Any, ...]] = []
        for name, most in zip(names, max_bytes or [largest] * len(names), strict=True):
            commands += (("GETRANGE", name, 0, min(most, largest)), ("PTTL", name))
        replies = self._replies(commands)
        return list(zip(replies[::2], replies[1::2], strict=True))

    def sizes_to_read(self, names: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Return the names of the keys that a scan of the group has to read, each with the size of its value in bytes.

        Those that :meth:`skip` has recorded are left out, unless their size is another one now. The size of a key that
        does not hold a string is 0.
        """
        if not names:
            return []
        replies = self._replies([("STRLEN", name) for name in names])
        sizes = [reply if isinstance(reply, int) else 0 for reply in replies]
        marks = cast("list[bytes | None]", self._client.mget([self._skipped(name) for name in names]))
        rows = zip(names, sizes, marks, strict=True)
        return [(name, size) for name, size, mark in rows if mark != b"%d" % size]

    def skip(self, keys: Sequence[tuple[bytes, int, int]]) -> None:
        """Record keys that no scan of the group needs to read again, if Redis has memory for it.

        Arguments:
            keys: Name, size as :meth:`sizes_to_read` returned it, and TTL in ms; -1: it has none.

        Raises:
            RedisError: Redis does not answer.
        """
        with self._client.pipeline(transaction=False) as pipe:
            for name, size, ttl_ms in keys:
                pipe.set(self._skipped(name), size, px=max(ttl_ms, self._settings.dedup_ttl_ms))
            pipe.execute(raise_on_error=False)

    def _skipped(self, name: bytes) -> str:
        return self._keys.skipped(self._settings.group, self._keys.event_id(name))

    def names(self) -> Iterator[list[bytes]]:
        """Yield the names of all keys, in pages. A key that moves between two servers meanwhile may be missed.

        Raises:
            RedisError: A server does not answer.
        """
        for _, client in servers_of(self._client):
            cursor: int | None = None
            while cursor != 0:
                cursor, page = client.scan(cursor or 0, match=self._keys.all_events, count=_SCAN_COUNT)
                yield cast("list[bytes]", page)

    def add(self, events: Sequence[EncodedEvent]) -> list[bool]:
        """Write the keys that do not exist; return for each whether it was written.

        Raises:
            RedisError: A server does not answer; some keys may have been written.
        """
        ttl = ("PX", self._settings.event_ttl_ms)
        replies = self._replies([("SET", self._keys.event(one.id), one.data, *ttl, "NX") for one in events])
        return [reply is not None for reply in _raised(replies)]

    def replace(self, events: Sequence[EncodedEvent]) -> None:
        """Write keys, whatever their values are.

        Raises:
            RedisError: A server does not answer; some keys may have been written.
        """
        ttl = ("PX", self._settings.event_ttl_ms)
        _raised(self._replies([("SET", self._keys.event(one.id), one.data, *ttl) for one in events]))

    def remove(self, event_ids: Sequence[str]) -> None:
        """Delete keys.

        Raises:
            RedisError: A server does not answer; some keys may have been deleted.
        """
        _raised(self._replies([("DEL", self._keys.event(event_id)) for event_id in event_ids]))

    def _replies(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the replies to commands on one key each; the error of a key is its reply.

        Raises:
            RedisError: A server does not answer.
        """
        if not commands:
            return []
        try:
            client = self._client if self._cluster is None else self._cluster.client
            with client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies = pipe.execute(raise_on_error=False)
        except RedisClusterException as error:
            raise RedisConnectionError(str(error)) from error
        # For a cluster, redis-py returns errors of a server in the same way as errors of keys.
        if unavailable := next((reply for reply in replies if heals_by_waiting(reply)), None):
            raise unavailable
        return list(replies)


def _raised(replies: list[Any]) -> list[Any]:
    if error := next((reply for reply in replies if isinstance(reply, Exception)), None):
        raise error
    return replies

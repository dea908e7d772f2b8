"""The consumer groups of the journal as a whole: which there are, and how one goes for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from bridge.connection import attempt
from bridge.keys import Keys, escape_glob
from bridge.settings import BridgeSettings

#: Keys the server looks at in one step of a scan, and the most that are removed in one.
_SCAN_KEYS = 1000


@dataclass(frozen=True)
class Group:
    """One consumer group.

    Arguments:
        name: Its name; of any program that reads the journal.
        consumers: How many it has, dead ones included.
        pending: Entries that consumers have taken and not finished.
        backlog: Entries that no consumer has taken; None where the server does not tell (before Redis 7, mostly).
        last_id: Stream id of the entry taken last; ``0-0``: none yet.
    """

    name: str
    consumers: int
    pending: int
    backlog: int | None
    last_id: str

    @property
    def last_ms(self) -> int:
        """When the journal took the entry that was taken last, ms since the epoch; 0: none was."""
        return int(self.last_id.partition("-")[0])


@dataclass(frozen=True)
class Holdings:
    """What goes with a group: entries under way, dead letters, tasks that were sent and have not ended."""

    pending: int
    dead_letters: int
    in_flight: int


class Groups:
    """The groups of one bus.

    Arguments:
        client: Connected to the bus.
        settings: Prefix.
    """

    def __init__(self, client: Redis, settings: BridgeSettings) -> None:
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.channel_prefix)

    def all(self) -> list[Group]:
        """Return all groups, by name.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """

        def read() -> Any:
            with self._client.pipeline(transaction=False) as pipe:
                pipe.xinfo_groups(self._keys.journal)
                pipe.xinfo_stream(self._keys.journal)
                return pipe.execute(raise_on_error=False)

        rows, journal = attempt(self._settings, "listing the groups", read)
        for reply in (rows, journal):
            if isinstance(reply, ResponseError) and "no such key" in str(reply):
                return []
            if isinstance(reply, Exception):
                raise reply
        end = journal["last-generated-id"]
        return sorted((_group(row, end) for row in rows), key=lambda group: group.name)

    def holdings(self, name: str) -> Holdings:
        """Return what a group holds.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        pending = sum(group.pending for group in self.all() if group.name == name)

        def read() -> Any:
            with self._client.pipeline(transaction=False) as pipe:
                pipe.xlen(self._keys.dead(name))
                pipe.zcard(self._keys.inflight(name))
                return pipe.execute()

        return Holdings(pending, *attempt(self._settings, "looking at a group", read))

    def exists(self, name: str) -> bool:
        """Whether there is such a group, or something is left of it.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        if any(group.name == name for group in self.all()):
            return True
        return bool(attempt(self._settings, "looking at a group", lambda: self._client.exists(*self._fixed(name))))

    def idle_s(self, name: str) -> float | None:
        """Return how long ago, in seconds, a consumer of the group last tried to read; None without consumers.

        Raises:
            RedisError: Redis does not answer.
        """
        try:
            rows: Any = self._client.xinfo_consumers(self._keys.journal, name)
        except ResponseError as error:
            if str(error).startswith("NOGROUP") or "no such key" in str(error):
                return None
            raise
        return min((row["idle"] / 1000 for row in rows), default=None)

    def delete(self, name: str) -> None:
        """Remove a group and every key of its own; safe to repeat, and to go on with after an error.

        A subscriber of it that is alive would begin it anew, at the oldest event that is retained.

        Raises:
            RedisError: Redis does not answer; some of it may be gone.
        """
        for pattern in self._patterns(name):
            found: list[bytes] = []
            for key in self._client.scan_iter(match=pattern, count=_SCAN_KEYS):
                found.append(key)
                if len(found) >= _SCAN_KEYS:
                    self._client.unlink(*found)
                    found.clear()
            if found:
                self._client.unlink(*found)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.unlink(*self._fixed(name))
            pipe.xgroup_destroy(self._keys.journal, name)
            _, destroyed = pipe.execute(raise_on_error=False)
        if isinstance(destroyed, Exception) and "key to exist" not in str(destroyed):
            raise destroyed

    def _fixed(self, name: str) -> list[str]:
        keys = self._keys
        ledger = [keys.inflight(name), keys.inflight_pairs(name), keys.inflight_lanes(name)]
        letters = [keys.dead(name), keys.dead_size(name)]
        return [*ledger, *letters, keys.fence(name), keys.upkeep(name), keys.starts(name), keys.subscribers(name)]

    def _patterns(self, name: str) -> list[str]:
        keys = (self._keys.replay(name, ""), self._keys.replays(name, ""), self._keys.parked(name, ""))
        return [escape_glob(key) + "*" for key in keys]


def _group(row: dict[str, Any], end: bytes) -> Group:
    last_id = row["last-delivered-id"]
    backlog = row.get("lag")
    if backlog is None and last_id == end:
        backlog = 0
    name = row["name"].decode(errors="backslashreplace")
    return Group(name, row["consumers"], row["pending"], backlog, last_id.decode())

"""How a consumer group goes for good, with all that is its own. Which there are: see status.py."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bridge.errors import JournalLost
from bridge.events import escape_glob
from bridge.storage import Storage, group_errors

#: Keys the server looks at in one step of a scan, and the most that are removed in one.
_SCAN_KEYS = 1000
#: A consumer that has read within this time is alive.
_ALIVE_MS = 10_000


@dataclass(frozen=True)
class Holdings:
    """What goes with a group: entries under way, dead letters, tasks that were sent and have not ended."""

    pending: int
    dead_letters: int
    in_flight: int


class Groups:
    """The groups of one bus.

    Arguments:
        storage: The bus, as any group sees it.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._client = storage.client
        self._keys = storage.keys

    def holdings(self, name: str) -> Holdings:
        """Return what a group holds.

        Raises:
            RedisError: Redis does not answer.
        """
        group = self._storage.journal.groups().get(name)
        pending = group.pending if group is not None else 0
        with self._client.pipeline(transaction=False) as pipe:
            pipe.xlen(self._keys.dead(name))
            pipe.zcard(self._keys.inflight(name))
            return Holdings(pending, *pipe.execute())

    def exists(self, name: str) -> bool:
        """Whether there is such a group, or something is left of it.

        Raises:
            RedisError: Redis does not answer.
        """
        return name in self._storage.journal.groups() or bool(self._client.exists(*self._fixed(name)))

    def in_use(self, name: str) -> bool:
        """Whether a subscriber of the group lives, or another program has just read for it.

        Raises:
            RedisError: Redis does not answer.
        """
        if any(one.alive for one in self._storage.of_group(name).presence.all()):
            return True
        try:
            with group_errors():
                rows: Any = self._client.xinfo_consumers(self._keys.journal, name)
        except JournalLost:
            return False
        return any(row["idle"] < _ALIVE_MS for row in rows)

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
        if isinstance(destroyed, Exception):
            with suppress(JournalLost), group_errors():
                raise destroyed

    def _fixed(self, name: str) -> list[str]:
        keys = self._keys
        return [
            keys.inflight(name),
            keys.inflight_tasks(name),
            keys.queue_watermarks(name),
            keys.dead(name),
            keys.dead_size(name),
            keys.fencing_token(name),
            keys.leader(name),
            keys.starts(name),
            keys.subscribers(name),
        ]

    def _patterns(self, name: str) -> list[str]:
        keys = (self._keys.replay(name, ""), self._keys.replays(name, ""), self._keys.dead_letter_dedup(name, ""))
        return [escape_glob(key) + "*" for key in keys]

"""Deletes a consumer group with everything that is stored for it. ``storage.read_status`` lists the groups."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bridge.errors import JournalLost
from bridge.events import escape_glob
from bridge.storage import Storage, group_errors

#: Keys that the server examines in one step of a scan, and most keys that are deleted in one step.
_SCAN_KEYS = 1000
#: A consumer that has read within this time is considered alive.
_ALIVE_MS = 10_000


@dataclass(frozen=True)
class Holdings:
    """What is deleted with a group: pending entries, dead letters, tasks that were sent and have not ended."""

    pending: int
    dead_letters: int
    in_flight: int


class Groups:
    """The groups of one bus.

    Arguments:
        storage: The bus; the group of its settings does not matter.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._client = storage.client
        self._keys = storage.keys

    def holdings(self, name: str) -> Holdings:
        """Return what would be deleted with a group.

        Raises:
            RedisError: Redis does not answer.
        """
        pending = self._storage.journal.groups().get(name, 0)
        with self._client.pipeline(transaction=False) as pipe:
            pipe.xlen(self._keys.dead(name))
            pipe.zcard(self._keys.inflight(name))
            return Holdings(pending, *pipe.execute())

    def exists(self, name: str) -> bool:
        """Whether the group, or a key of it, exists.

        Raises:
            RedisError: Redis does not answer.
        """
        stored = name in self._storage.group_settings.all() or bool(self._client.exists(*self._fixed(name)))
        return stored or name in self._storage.journal.groups()

    def in_use(self, name: str) -> bool:
        """Whether a subscriber of the group is alive, or another program has read for it within the last 10 s.

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
        """Delete a group and all of its keys; safe to repeat, also after an error.

        A live subscriber of the group would recreate it, starting at the oldest retained event.

        Raises:
            RedisError: Redis does not answer; a part of it may be deleted.
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
            self._storage.group_settings.forget(name, pipe)
            pipe.xgroup_destroy(self._keys.journal, name)
            *_, destroyed = pipe.execute(raise_on_error=False)
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
            keys.handed_over(name),
            keys.leader(name),
            keys.starts(name),
            keys.subscribers(name),
            keys.workers(name),
            keys.queue_leader(name),
            keys.queue_sample(name),
        ]

    def _patterns(self, name: str) -> list[str]:
        keys = [of(name, "") for of in (self._keys.replay, self._keys.replays, self._keys.skipped)]
        keys.append(self._keys.dead_letter_dedup(name, ""))
        return [escape_glob(key) + "*" for key in keys]

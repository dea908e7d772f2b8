"""Repair of a journal whose ids are ahead of the clock of the server: see ``set_aside.lua`` for how that happens.

No event is lost or dispatched a second time: entries that a group has not acknowledged are delivered to it again, and
it skips the others. The ids of all entries are new, so they are retained as if they had been published at the repair.
A crash at any point leaves what the next call continues.
"""

from __future__ import annotations

import secrets
from typing import Any, cast

from redis import Redis

from bridge.config import BATCH_BYTES
from bridge.storage.keys import Keys
from bridge.storage.lua import script

#: How far the last id may be ahead: clocks are corrected by less, and ids soon fit again.
MAX_AHEAD_MS = 60_000
#: Entries that are moved in one step.
_MAX_ENTRIES = 500


class JournalRepair:
    """Repairs the journal of one bus. The methods raise redis-py's errors as they come; all are safe to repeat.

    Arguments:
        client: Connected to the bus.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._set_aside = script(client, "set_aside")
        self._move_back = script(client, "move_back")

    def set_aside(self) -> int:
        """Replace the journal by an empty one if its ids are ahead; return by how many ms they were, 0 if not."""
        groups: list[str] = []
        while True:
            keys = [self._keys.journal, self._keys.journal_start, self._keys.set_aside]
            keys.append(self._keys.aside(secrets.token_hex(6)))
            keys += [self._keys.fencing_token(group) for group in groups]
            ahead = cast("bytes | None", self._set_aside(keys=keys, args=[MAX_AHEAD_MS, *groups]))
            if ahead is not None:
                return int(ahead)
            rows: Any = self._client.xinfo_groups(self._keys.journal)
            groups = [row["name"].decode() for row in rows]

    def move_back(self) -> tuple[int, bool]:
        """Move some of the entries that were set aside to the journal; return how many, and whether there are more."""
        aside: Any = self._client.lindex(self._keys.set_aside, 0)
        if aside is None:
            return 0, False
        keys = [self._keys.journal, self._keys.set_aside, aside]
        moved = self._move_back(keys=keys, args=[self._keys.seen(""), _MAX_ENTRIES, BATCH_BYTES])
        return cast("int", moved), True  # another stream may have been set aside

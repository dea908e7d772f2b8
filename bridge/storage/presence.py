"""Which subscribers of a group live: each says so every few seconds, and what it is about.

Times are those of the Redis server, so that clocks that differ do no harm.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from redis import Redis

from bridge.storage.lua import script
from bridge.storage.server_time import server_ms

#: How often a subscriber says that it lives, and after how long in silence it counts as gone.
HEARTBEAT_INTERVAL_S = 2.0
DEAD_AFTER_S = 6.0
#: How long one that is gone without a word is still shown.
_FORGET_MS = 600_000


@dataclass(frozen=True)
class Presence:
    """What a subscriber says of itself.

    Arguments:
        name: Its consumer name.
        host: Where it runs.
        problems: Why it is not ready; empty when it is.
        waits: What it waits for on purpose, as a full queue; empty when it does not.
        dispatched_per_s: Task messages over the last ten seconds or so.
        gap_ms: When events may last have been missed on the channels, ms since the epoch; 0: never.
        metrics: Address of its metrics; empty when it has none.
        seen_s: How long ago it said this; filled in by :meth:`PresenceStore.all`.
    """

    name: str
    host: str = ""
    problems: list[str] = field(default_factory=list)
    waits: str = ""
    dispatched_per_s: float = 0.0
    gap_ms: int = 0
    metrics: str = ""
    seen_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether it has been heard of just now."""
        return self.seen_s <= DEAD_AFTER_S

    @property
    def ready(self) -> bool:
        """Whether it does its work."""
        return self.alive and not self.problems


#: Types of the fields.
_KINDS = {name: type(value) for name, value in vars(Presence("")).items()}


class PresenceStore:
    """The subscribers of one group. The methods raise redis-py's errors as they come.

    Arguments:
        client: Connected to the bus.
        key: The hash of the group, see :meth:`bridge.storage.Keys.subscribers`.
    """

    def __init__(self, client: Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._report = script(client, "report_presence")

    def report(self, presence: Presence) -> None:
        """Note that a subscriber lives."""
        self._report(keys=[self._key], args=[presence.name, json.dumps(asdict(presence)), _FORGET_MS])

    def leave(self, name: str) -> None:
        """Note that a subscriber stops."""
        self._client.hdel(self._key, name)

    def all(self) -> list[Presence]:
        """Return those that live, and those that went without a word in the last minutes, by name."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(self._key)
            time, rows = pipe.execute()
        return read_presences(rows, server_ms(time))


def read_presences(rows: dict[bytes, bytes], now_ms: int) -> list[Presence]:
    """Return the subscribers in the hash of :meth:`bridge.keys.Keys.subscribers`, by name.

    Arguments:
        now_ms: By the clock of the server.
    """
    found = []
    for value in rows.values():
        at_ms, _, text = value.partition(b" ")
        with suppress(ValueError, TypeError, AttributeError):  # another version, or anybody, may have written it
            stored: dict[str, Any] = json.loads(text)
            known = {name: it for name, it in stored.items() if type(it) is _KINDS.get(name)}
            found.append(Presence(**known | {"seen_s": max(0, now_ms - int(at_ms)) / 1000}))
    return sorted(found, key=lambda presence: presence.name)

"""Which subscribers of a group are running: each reports its state every few seconds.

Times are those of the Redis server, so clocks of hosts that differ do not matter.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from redis import Redis

from bridge.config import BridgeSettings
from bridge.storage.group_settings import GroupSettings
from bridge.storage.keys import Keys
from bridge.storage.lua import script
from bridge.storage.server_time import server_ms

#: How often a subscriber reports, and how long without a report until it is considered dead.
HEARTBEAT_INTERVAL_S = 2.0
DEAD_AFTER_S = 6.0
#: How long a dead subscriber is still shown.
_FORGET_MS = 600_000


@dataclass(frozen=True)
class Presence:
    """The last report of a subscriber.

    Arguments:
        name: Its consumer name.
        host: The host on which it runs.
        problems: Why it is not ready; empty when it is.
        waits: What dispatch waits for without a problem, such as room in a queue; empty when it does not wait.
        dispatched_per_s: Task messages per second, over about ten seconds.
        gap_ms: When it may last have missed events on the channels, ms since the epoch; 0: never.
        metrics: Address of its metrics; empty when it has none.
        seen_s: Age of the report; filled in by :meth:`PresenceStore.all`.
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
        """Whether the report is recent enough for a running subscriber."""
        return self.seen_s <= DEAD_AFTER_S

    @property
    def ready(self) -> bool:
        """Whether it is alive and has no problem."""
        return self.alive and not self.problems


#: Types of the fields.
_TYPES = {name: type(value) for name, value in vars(Presence("")).items()}


class PresenceStore:
    """The subscribers of one group. The methods raise redis-py's errors as they come.

    Arguments:
        client: Connected to the bus.
        settings: The group, and what other groups need to know of it.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, settings: BridgeSettings, keys: Keys) -> None:
        self._client = client
        self._group = settings.group
        self._key = keys.subscribers(settings.group)
        self._settings_key = keys.group_settings
        self._shared = GroupSettings.of(settings).encode()
        self._report = script(client, "report_presence")

    def report(self, presence: Presence, *, first: bool = False) -> None:
        """Record the report of a running subscriber, and the settings of its group unless they are known.

        Arguments:
            first: It has just started: replace the settings of the group.
        """
        args: list[Any] = [presence.name, json.dumps(asdict(presence)), _FORGET_MS]
        args += (self._group, self._shared, int(first))
        self._report(keys=[self._key, self._settings_key], args=args)

    def leave(self, name: str) -> None:
        """Remove a subscriber that stops."""
        self._client.hdel(self._key, name)

    def all(self) -> list[Presence]:
        """Return the running subscribers, and those that died in the last minutes, by name."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(self._key)
            time, rows = pipe.execute()
        return read_presences(rows, server_ms(time))


def read_presences(rows: dict[bytes, bytes], now_ms: int) -> list[Presence]:
    """Return the subscribers in the hash of :meth:`bridge.storage.Keys.subscribers`, by name.

    Arguments:
        now_ms: By the clock of the server.
    """
    found = []
    for value in rows.values():
        at_ms, _, text = value.partition(b" ")
        with suppress(ValueError, TypeError, AttributeError):  # another version or program may have written it
            stored: dict[str, Any] = json.loads(text)
            known = {name: it for name, it in stored.items() if type(it) is _TYPES.get(name)}
            found.append(Presence(**known | {"seen_s": max(0, now_ms - int(at_ms)) / 1000}))
    return sorted(found, key=lambda presence: presence.name)

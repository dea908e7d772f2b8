"""The settings of each group that the other groups of the bus need to know.

Groups are applications that are configured and deployed on their own. What they share is one journal: it is kept for as
long as the group needs that keeps events longest, also while none of its subscribers runs. And the subscriber that
receives an event first decides for all groups whether it is accepted, so the settings for that must agree.

A subscriber writes the settings of its group when it starts, with its first report. They stay until the group is
deleted. An operator can keep events for a group for longer, for some time, see :meth:`GroupSettingsStore.retain`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from redis import Redis

from bridge.config import BridgeSettings
from bridge.storage.keys import Keys
from bridge.storage.server_time import server_ms

#: Name of a setting to its value. Secrets are left out.
_SHARED: Mapping[str, Callable[[BridgeSettings], Any]] = {
    "event_ttl_s": lambda settings: settings.event_ttl_s,
    "dedup_ttl_s": lambda settings: settings.dedup_ttl_ms // 1000,
    "max_event_bytes": lambda settings: settings.max_event_bytes,
    "max_event_depth": lambda settings: settings.max_event_depth,
    "max_hops": lambda settings: settings.max_hops,
    "max_events_per_s_per_source": lambda settings: settings.max_events_per_s_per_source,
    "accepted_types": lambda settings: sorted(settings.accepted_types),
    "rejected_types": lambda settings: sorted(settings.rejected_types),
    "require_signature": lambda settings: sorted(settings.require_signature),
    "signature_max_age_s": lambda settings: settings.signature_max_age_ms // 1000,
    "signing_keys": lambda settings: sorted(settings.signing_keys),  # their ids
}


#: Start of the name of the field that holds what an operator wrote. No name of a group contains a colon.
_RETAINED = "retained:"
#: How much longer than events their marks live, as by default.
_MARKS_LONGER_S = 3600


@dataclass(frozen=True)
class GroupSettings:
    """The settings of one group.

    Arguments:
        event_ttl_s, dedup_ttl_s: How long it needs journal entries and marks.
        values: All shared settings by name. Of ``signing_keys`` only the ids. Those of another version may be fewer.
    """

    event_ttl_s: int
    dedup_ttl_s: int
    values: Mapping[str, Any]

    @classmethod
    def of(cls, settings: BridgeSettings) -> Self:
        """Return what *settings* mean for the other groups."""
        values = {name: value(settings) for name, value in _SHARED.items()}
        return cls(values["event_ttl_s"], values["dedup_ttl_s"], values)

    @classmethod
    def read(cls, row: bytes) -> Self:
        """Return the settings in a row of the hash.

        Raises:
            ValueError: Another program wrote it.
        """
        event_ttl_ms, dedup_ttl_ms, text = row.split(b" ", 2)
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        return cls(int(event_ttl_ms) // 1000, int(dedup_ttl_ms) // 1000, values)

    def encode(self) -> str:
        """Return the row of the hash: the lifetimes in ms, for scripts, and JSON."""
        return f"{self.event_ttl_s * 1000} {self.dedup_ttl_s * 1000} {json.dumps(dict(self.values))}"


class GroupSettingsStore:
    """The settings of all groups of one bus. The methods raise redis-py's errors as they come.

    Arguments:
        client: Connected to the bus.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._client = client
        self._key = keys.group_settings

    def all(self) -> dict[str, GroupSettings]:
        """Return the settings by group, for the groups whose subscribers have written them."""
        rows: Any = self._client.hgetall(self._key)
        found = {}
        for group, row in rows.items():
            with suppress(ValueError):
                found[group.decode()] = GroupSettings.read(row)
        return found

    def retain(self, group: str, event_ttl_s: int) -> None:
        """Keep events for a group for *event_ttl_s*, whatever its subscribers write; this ends after the same time."""
        now_ms = server_ms(self._client.time())
        row = f"{event_ttl_s * 1000} {(event_ttl_s + _MARKS_LONGER_S) * 1000} {now_ms + event_ttl_s * 1000}"
        self._client.hset(self._key, _RETAINED + group, row)

    def retained(self) -> dict[str, int]:
        """Return for how long operators keep events by group, in seconds, where that has not ended."""
        rows: Any = self._client.hgetall(self._key)
        now_ms = server_ms(self._client.time())
        found = {}
        for name, row in rows.items():
            event_ttl_ms, *_, until = row.split(b" ")
            if name.startswith(_RETAINED.encode()) and int(until) > now_ms:
                found[name.decode().removeprefix(_RETAINED)] = int(event_ttl_ms) // 1000
        return found

    def forget(self, group: str, client: Redis) -> None:
        """Delete everything about a group, by *client*, which may be a transaction."""
        client.hdel(self._key, group, _RETAINED + group)

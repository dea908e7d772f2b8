"""Which subscribers of a group are running, and which handlers they have: each reports this every few seconds.

What a subscriber does with an event depends on the handlers of the others. So a report of handlers that differ from
those of another live subscriber advances the fencing token of the group in the same step: no transaction that was begun
without knowing of them is executed any more.

Times are those of the Redis server, so clocks of hosts that differ do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import Any

from redis import Redis

from bridge.config import BridgeSettings
from bridge.events import compile_pattern
from bridge.storage.group_settings import GroupSettings
from bridge.storage.keys import Keys
from bridge.storage.lua import script
from bridge.storage.server_time import server_ms

#: How often a subscriber reports, and how long without a report until it is considered dead.
HEARTBEAT_INTERVAL_S = 2.0
DEAD_AFTER_S = 6.0
#: How long after its last report others still hand entries over to a subscriber. If it has crashed or stopped, its
#: successor may be starting, and gets them; if it is only slow, they are not lost.
REMEMBERED_S = 60.0
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
        handlers: Name of each of its handlers to the patterns; empty if it has none, or is of an earlier version.
        reports_queues: Whether its process reports the queues that it takes tasks from, if it is a worker. Earlier
            versions do not.
        stopped: Whether it has stopped as it should, and this is its last report.
        seen_s: Age of the report; filled in by :meth:`PresenceStore.all`.
    """

    name: str
    host: str = ""
    problems: list[str] = field(default_factory=list)
    waits: str = ""
    dispatched_per_s: float = 0.0
    gap_ms: int = 0
    metrics: str = ""
    handlers: dict[str, list[str]] = field(default_factory=dict)
    reports_queues: bool = False
    stopped: bool = False
    seen_s: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether the report is recent enough for a running subscriber."""
        return self.seen_s <= DEAD_AFTER_S and not self.stopped

    @property
    def ready(self) -> bool:
        """Whether it is alive and has no problem."""
        return self.alive and not self.problems

    def encode(self) -> str:
        """Return the report as it is stored, with a hash of the handlers for ``report_presence.lua``."""
        return json.dumps(asdict(self) | {"registry": self.registry})

    @property
    def registry(self) -> str:
        """Hash of the handlers, the same for all subscribers that have the same ones."""
        handlers = {name: sorted(patterns) for name, patterns in self.handlers.items()}
        return blake2b(json.dumps(handlers, sort_keys=True).encode(), digest_size=8).hexdigest()


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
        self._fencing_token = keys.fencing_token(settings.group)
        self._shared = GroupSettings.of(settings).encode()
        self._report = script(client, "report_presence")

    def report(self, presence: Presence, *, first: bool = False) -> None:
        """Record the report of a running subscriber, and the settings of its group unless they are known.

        Arguments:
            first: It has just started: replace the settings of the group.
        """
        args: list[Any] = [presence.name, presence.encode(), _FORGET_MS]
        args += (self._group, self._shared, int(first), presence.registry, int(REMEMBERED_S * 1000))
        self._report(keys=[self._key, self._settings_key, self._fencing_token], args=args)

    def leave(self, presence: Presence, *, differs: bool = False) -> None:
        """Record that a subscriber stops. Its handlers are remembered for :data:`REMEMBERED_S`.

        Arguments:
            presence: Its last report.
            differs: Whether others have other handlers. They must learn at once that this one has stopped.
        """
        self.report(replace(presence, stopped=True))
        if differs:
            self._client.incr(self._fencing_token)

    def read_command(self) -> tuple[Any, ...]:
        """Return the command whose reply is for :func:`read_presences`."""
        return ("HGETALL", self._key)

    def all(self) -> list[Presence]:
        """Return the running subscribers, and those that died or stopped in the last minutes, by name."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(self._key)
            time, rows = pipe.execute()
        return read_presences(rows, server_ms(time))


def handler_differences(presences: Iterable[Presence]) -> dict[str, list[str]]:
    """Return the handlers that some of the live subscribers have and others lack: their names to those that lack them.

    A handler that has other patterns counts as another handler. Subscribers without any handlers are left out.
    """
    known = {one.name: handler_labels(one.handlers) for one in presences if one.alive and one.handlers}
    everything = sorted(set().union(*known.values()))
    lacking = {label: sorted(name for name, labels in known.items() if label not in labels) for label in everything}
    return {label: names for label, names in lacking.items() if names}


def handler_labels(handlers: Mapping[str, Iterable[str]]) -> set[str]:
    """Return handlers as text, each with its patterns: ``shop.tasks.pay (order.*)``."""
    return {f"{name} ({', '.join(sorted(patterns))})" for name, patterns in handlers.items()}


def read_presences(rows: Any, now_ms: int) -> list[Presence]:
    """Return the subscribers in the hash of :meth:`bridge.storage.Keys.subscribers`, by name.

    Arguments:
        rows: The hash as a dict, or as RESP2 has it, names and values in turn.
        now_ms: By the clock of the server.
    """
    if not isinstance(rows, dict):
        rows = dict(zip(rows[::2], rows[1::2], strict=True))
    found = []
    for value in rows.values():
        at_ms, _, text = value.partition(b" ")
        with suppress(ValueError, TypeError, AttributeError):  # another version or program may have written it
            stored: dict[str, Any] = json.loads(text)
            known = {name: it for name, it in stored.items() if type(it) is _TYPES.get(name)}
            known["handlers"] = _usable(known.get("handlers", {}))
            found.append(Presence(**known | {"seen_s": max(0, now_ms - int(at_ms)) / 1000}))
    return sorted(found, key=lambda presence: presence.name)


def _usable(handlers: dict[str, Any]) -> dict[str, list[str]]:
    """Return the handlers whose patterns are valid."""
    found = {}
    for name, patterns in handlers.items():
        with suppress(ValueError, TypeError):
            found[name] = [pattern for pattern in patterns if compile_pattern(pattern)]
    return found

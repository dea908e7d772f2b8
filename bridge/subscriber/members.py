"""What one subscriber knows of the handlers of the other subscribers of its group.

Usually all have the same handlers. During a rolling deploy they differ for a while, and they stay different when two
applications share a group by mistake. Then a subscriber must not acknowledge an event only because it has no handler
for it: it hands the event over to one that has.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable
from zlib import crc32

from bridge.handlers import Handler, Registry
from bridge.storage import HEARTBEAT_INTERVAL_S, REMEMBERED_S, Presence, Storage, handler_labels
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)

#: Most handlers that a log line names.
_MAX_NAMED = 10


class Members:
    """The other subscribers of a group that have other handlers than this one.

    One that has stopped or crashed stays among them for a minute, because its successor may be starting. Events that
    only it has handlers for wait meanwhile.

    The dispatching thread calls :meth:`update` and reads; the thread that reports the presence sets the two events.

    Arguments:
        storage: The presence of the subscribers of the group.
        registry: The handlers of this subscriber.
        name: Name of this subscriber.
    """

    def __init__(self, storage: Storage, registry: Registry, name: str) -> None:
        self._presence = storage.presence
        self._registry = registry
        self._group = storage.settings.group
        self.name = name
        self._others: dict[str, Registry] = {}
        self._alive: set[str] = set()
        #: Whether another subscriber has other handlers.
        self.differ = False
        self._updated_at = 0.0
        #: What was logged last: the handlers that this subscriber lacks, and those that others lack.
        self._logged: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        #: Set once the other subscribers know the handlers of this one, or Redis refuses to store them.
        self.announced = threading.Event()
        #: Set once the others know that this subscriber stops.
        self.withdrawn = threading.Event()

    @property
    def handlers(self) -> dict[str, list[str]]:
        """The handlers of this subscriber, as it reports them."""
        return {name: list(patterns) for name, patterns in self._registry.patterns.items()}

    @property
    def has_handlers(self) -> bool:
        """Whether this subscriber has any handlers."""
        return bool(self._registry.names)

    def refresh(self) -> None:
        """While handlers differ, notice every few seconds which of the others have died.

        Raises:
            RedisError: Redis does not answer.
        """
        if self._others and time.monotonic() - self._updated_at > HEARTBEAT_INTERVAL_S:
            self.update(self._presence.all())

    def update(self, presences: Iterable[Presence]) -> None:
        """Take note of the subscribers that there are now."""
        self._updated_at = time.monotonic()
        own = handler_labels(self._registry.patterns)
        others = [
            one
            for one in presences
            if one.seen_s <= REMEMBERED_S and one.handlers and one.name != self.name
            if handler_labels(one.handlers) != own
        ]
        self._others = {one.name: _registry_of(one.handlers) for one in others}
        self._alive = {one.name for one in others if one.alive}
        self.differ = bool(others)
        self._log(own, {one.name: handler_labels(one.handlers) for one in others if one.alive})

    def for_handlers_of(self, event_type: str, dispatched_to: Collection[str], entry_id: bytes) -> str | None:
        """Return the subscriber that an entry goes to next, or None if no handler of the others lacks it.

        Arguments:
            dispatched_to: The handlers that have it, by name.
            entry_id: Subscribers with the same handlers share the entries.
        """
        lacking = {
            name: sum(handler.task_name not in dispatched_to for handler in known.matching(event_type))
            for name, known in self._others.items()
        }
        return self._best(lacking, entry_id)

    def for_handler(self, task_name: str, event_type: str, entry_id: bytes) -> str | None:
        """Return a subscriber that has this handler for events of this type, or None."""
        having = {
            name: sum(handler.task_name == task_name for handler in known.matching(event_type))
            for name, known in self._others.items()
        }
        return self._best(having, entry_id)

    def have(self, task_name: str) -> bool:
        """Whether another subscriber has this handler."""
        return any(known.get(task_name) is not None for known in self._others.values())

    def _best(self, lacking: dict[str, int], entry_id: bytes) -> str | None:
        def preference(name: str) -> tuple[bool, int, int]:
            return name in self._alive, lacking[name], crc32(entry_id + name.encode())

        return max((name for name, count in lacking.items() if count), key=preference, default=None)

    def _log(self, own: set[str], others: dict[str, set[str]]) -> None:
        here = frozenset(label for labels in others.values() for label in own - labels)
        elsewhere = frozenset().union(*others.values()) - own
        if not others or (elsewhere, here) == self._logged:
            return
        self._logged = elsewhere, here
        names = ", ".join(sorted(others))
        extra = log_fields(Action.HANDLERS_DIFFER, group=self._group, consumer=self.name, count=len(elsewhere | here))
        text = (
            "Subscribers of group %s have different handlers. Only others have: %s. Others lack: %s. Others: %s. Each "
            "event goes to all of its handlers, but more slowly. This is normal while a new version is deployed; "
            "otherwise two applications share the group, and one of them needs another bridge_group"
        )
        log.warning(text, self._group, _shown(elsewhere), _shown(here), names, extra=extra)


def _registry_of(handlers: dict[str, list[str]]) -> Registry:
    made = Registry()
    for name, patterns in handlers.items():
        made.add(Handler(name, tuple(patterns)))
    return made


def _shown(labels: Collection[str]) -> str:
    named = sorted(labels)[:_MAX_NAMED]
    more = len(labels) - len(named)
    return "; ".join(named + [f"{more} more"] * (more > 0)) or "none"

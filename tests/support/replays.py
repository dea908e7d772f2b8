"""Replays for tests, and the entries that they appended to the journal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis import Redis

from bridge import BridgeSettings, Event
from bridge.handlers.handler import Handler, Registry, task_id_for
from bridge.operations.replay import Progress, Replay
from bridge.operations.replay_sources import DeadLetterSource, JournalSource
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.entries import EntryFilter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage

FAST = 1e9


class Replays:
    """One bus, replays on it, and the entries that they appended."""

    def __init__(self, client: Redis, settings: BridgeSettings) -> None:
        self.client = client
        self.settings = settings
        self.keys = Keys(settings.channel_prefix)
        self.letters = Storage(client, settings).dead_letters

    def journal(self, name: str = "r", handler: str = "", accepts: Any = None, **selection: Any) -> Replay:
        source = JournalSource(
            Storage(self.client, self.settings), EntryFilter(**selection), handler, accepts or (lambda _: True)
        )
        return Replay(Storage(self.client, self.settings), source, name, {"handler": handler, **_plain(selection)})

    def dead(self, name: str = "r", **selection: Any) -> Replay:
        handlers = registry_of({"t.exact": "dream.created", "t.plain": "billing.*"})
        source = DeadLetterSource(Storage(self.client, self.settings), EntryFilter(**selection), handlers)
        return Replay(Storage(self.client, self.settings), source, name, _plain(selection))

    def park(self, number: int, handler: str = "t.exact", reason: str = "failure") -> Event:
        event = Event(type="dream.created", id=f"n{number}", metadata={"of": "old"})
        task_id = task_id_for("tests", event.id, handler)
        self.letters.add(DeadLetter.of_event(reason, "boom", event, event.encode(), handler, task_id))
        return event

    def replayed(self) -> list[dict[bytes, bytes]]:
        """Return the journal entries that were appended by replays."""
        return [fields for _, fields in self.client.xrange(self.keys.journal) if b"group" in fields]

    def ids(self) -> list[str]:
        return [fields[b"id"].decode() for fields in self.replayed()]


def registry_of(patterns: dict[str, str]) -> Registry:
    """Return handlers by task name, each with one pattern."""
    made = Registry()
    for name, pattern in patterns.items():
        made.add(Handler(name, (pattern,)))
    return made


def _plain(selection: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in selection.items()}


def last(steps: Iterator[Progress]) -> Progress:
    *_, progress = steps
    return progress

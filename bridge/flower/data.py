"""The data of the Events pages, independent of Flower: rows of the list of events, and one event with its chain.

Everything is read from Redis, and bounded: the list contains the newest events only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery

from bridge.config import BridgeSettings
from bridge.errors import BridgeError, InvalidEvent
from bridge.events import Event, compile_pattern, is_literal, now_ms
from bridge.flower.dead_letters import DeadLetterList
from bridge.flower.listing import Listing, page_of
from bridge.handlers import registry
from bridge.operations import Header, History, TaskNode, TaskStates, Trace, Tracer, full_id
from bridge.redis import connect
from bridge.storage import Storage, stream_position

#: How many of the newest events are listed, and how many if they are filtered by state.
NEWEST, NEWEST_BY_STATE = 1000, 500
#: How many sources of events are cached; they never change.
_SOURCES = 5000
#: Events per round trip when their sources are read, and journal entries per round trip when only their fields are.
_CHUNK, _PAGE = 20, 50
#: Longest search for an id of which only the beginning is given.
_SEARCH_S = 5.0
#: How long a command may take while a user waits for the page.
_TIMEOUT_S = 2.5
#: How long it is repeated if Redis is unavailable: pages refresh anyway.
_RETRY_S = 0.5

#: The filters above the list, each with its condition on the states of the tasks of an event.
BY_STATE: dict[str, Callable[[set[str]], bool]] = {
    "running": lambda states: bool(states & {"STARTED", "RETRY"}),
    "succeeded": lambda states: "SUCCESS" in states and states <= {"SUCCESS", "SKIPPED"},
    "failed": lambda states: bool(states & {"FAILURE", "GIVEN_UP"}),
    "waiting": lambda states: bool(states & {"WAITING", "SENT"}),
}


@dataclass(frozen=True)
class Page:
    """The event with an id, its chain, or both.

    Arguments:
        event: None if it has expired, or if the id is a correlation id.
        handlers: Names of the handlers to which it can be replayed; empty if it is no longer in the journal.
    """

    event: Event | None
    trace: Trace | None
    handlers: tuple[str, ...] = ()


class SearchTooLong(BridgeError):
    """The search for an id takes too long for a page."""


class EventData:
    """Reads the data of the pages; can be shared by threads.

    Arguments:
        app: The application whose events they are, its handlers imported.
        max_events: How many of the newest entries of the journal are listed.
        max_read_bytes: About how much is read for one page: an event or a dead letter may have a megabyte.

    Raises:
        SettingsError: Its settings are invalid.
    """

    def __init__(self, app: Celery, *, max_events: int = NEWEST, max_read_bytes: int = 16 * 1024 * 1024) -> None:
        settings = BridgeSettings.load(app)
        self._max_events, self._max_read_bytes = max_events, max_read_bytes
        self.settings = settings.model_copy(update={"publish_timeout_s": _RETRY_S})
        self.app = app
        self.storage = Storage(connect(self.settings, _TIMEOUT_S), self.settings)
        self.dead_letters = DeadLetterList(self.storage, max_read_bytes)
        self._history = History(self.storage)
        self._task_states = TaskStates(app, self.storage)
        self._tracer = Tracer(app, self.storage)
        self._headers: list[Header] = []
        self._sources: dict[str, str] = {}
        self._lock = threading.Lock()

    def events(self, search: str, state: str, start: int, length: int) -> Listing:
        """Return a page of the newest events.

        Arguments:
            search: Part of an id, type or source, case-insensitive; or a Redis glob over the whole type.
            state: One of :data:`BY_STATE`, or empty for all.
            start, length: How many rows to skip, and most rows to return.
        """
        headers = _once_each(self._newest())[: NEWEST_BY_STATE if state else self._max_events]
        dead_letters, total = self.dead_letters.count(), len(headers)
        try:
            found = self._found(search.strip(), headers)
        except ValueError as error:
            return Listing(total=total, dead_letters=dead_letters, problem=str(error))
        if state:
            pairs = list(zip(found, self._states(found), strict=True))
            chosen = [(one, tasks) for one, tasks in pairs if BY_STATE[state]({task.state for task in tasks})]
            shown = page_of(chosen, start, length)
            matching = len(chosen)
        else:
            matching = len(found)
            headers = page_of(found, start, length)
            shown = list(zip(headers, self._states(headers), strict=True))
        sources = self._read_sources([one for one, _ in shown])
        rows = [_event_row(one, tasks, sources.get(one.event_id, "")) for one, tasks in shown]
        return Listing(rows, total, matching, dead_letters)

    def _newest(self) -> list[Header]:
        """Return the newest entries of the journal, newest first. Entries that were read before are cached."""
        known, oldest_ms = self._headers, now_ms() - self.settings.event_ttl_ms
        places = {one.entry_id: place for place, one in enumerate(known)}
        found = page = self._history.newest(_PAGE)
        while len(page) == _PAGE and len(found) < self._max_events:
            if (place := places.get(found[-1].entry_id)) is not None:
                found = found + known[place + 1 :]
                break
            page = self._history.newest(_PAGE, before=f"({found[-1].entry_id}")
            found = found + page
        self._headers = [one for one in found[: self._max_events] if one.at_ms > oldest_ms]
        return self._headers

    def _states(self, headers: Sequence[Header]) -> list[list[TaskNode]]:
        return self._task_states.states([(one.event_id, one.event_type) for one in headers])

    def _found(self, search: str, headers: list[Header]) -> list[Header]:
        if not search:
            return headers
        if not is_literal(search):
            pattern = compile_pattern(search)
            return [one for one in headers if pattern.fullmatch(one.event_type)]
        sources = self._read_sources(headers)
        part = search.lower()
        return [
            one
            for one in headers
            if part in f"{one.event_id}\n{one.event_type}\n{sources.get(one.event_id, '')}".lower()
        ]

    def _read_sources(self, headers: Iterable[Header]) -> dict[str, str]:
        """Return the sources of events by id, as far as the read limit allows: they are a part of the events."""
        with self._lock:
            known = dict(self._sources)
        new = {one.entry_id: one.event_id for one in headers if one.event_id not in known}
        size, entry_ids = 0, list(new)
        for at in range(0, len(new), _CHUNK):
            entries = self.storage.journal.entries(entry_ids[at : at + _CHUNK])
            known |= {new[entry_id]: _source(entry.data or b"") for entry_id, entry in entries.items()}
            size += sum(len(entry.data or b"") for entry in entries.values())
            if size > self._max_read_bytes:
                break  # the others are read when the page is refreshed
        with self._lock:
            self._sources |= {event_id: known[event_id] for event_id in new.values() if event_id in known}
            while len(self._sources) > _SOURCES:
                del self._sources[next(iter(self._sources))]
        return known

    def page(self, any_id: str) -> Page | None:
        """Return the event and the chain of an event id or a correlation id; None if neither is known."""
        try:
            event = self._history.event(any_id)
        except InvalidEvent:  # another program wrote something else to its key
            event = None
        trace = self._tracer.trace(any_id)
        if event is None and trace is None:
            return None
        handlers = registry.matching(event.type) if event is not None else ()
        event = event and self.settings.redaction.event(event)
        return Page(event, trace, tuple(handler.task_name for handler in handlers))

    def full_id(self, start: str) -> str | None:
        """Return the only id of an event or a chain that begins with *start*; None if no id does.

        Raises:
            AmbiguousId: There are several.
            SearchTooLong: The search takes too long for a page.
        """
        deadline_s = time.monotonic() + _SEARCH_S

        def step(_: int) -> None:
            if time.monotonic() > deadline_s:
                raise SearchTooLong(f"The search took more than {_SEARCH_S:g} s. bus trace {start} has no such limit.")

        return full_id(self.storage, start, step)

    def trace(self, any_id: str) -> Trace | None:
        """Return the chain of an event id or a correlation id; None if it is unknown."""
        return self._tracer.trace(any_id)


def _once_each(headers: Sequence[Header]) -> list[Header]:
    """Return each event once, at its first entry: a replay appends the same event again."""
    first = {one.event_id: one for one in reversed(headers) if one.replay}
    first |= {one.event_id: one for one in reversed(headers) if not one.replay}
    return sorted(first.values(), key=lambda one: stream_position(one.entry_id), reverse=True)


def _source(data: bytes) -> str:
    try:
        return Event.decode(data, max_bytes=len(data)).source or ""
    except InvalidEvent:
        return ""


def _event_row(header: Header, tasks: Sequence[TaskNode], source: str) -> dict[str, Any]:
    return {
        "id": header.event_id,
        "type": header.event_type,
        "source": source,
        "at_ms": header.at_ms,
        "replay": header.replay,
        "tasks": [{"id": task.task_id, "handler": task.handler, "state": task.state} for task in tasks],
    }

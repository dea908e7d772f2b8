"""What the Events pages show, without anything of Flower: rows of the lists, and one event with its chain.

All of it reads from Redis and is bounded: the lists look at the newest events or letters only, however many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from celery import Celery

from bridge.config import BridgeSettings
from bridge.errors import InvalidEvent
from bridge.events import Event, compile_pattern, is_literal, now_ms
from bridge.handlers import registry
from bridge.operations import Header, History, TaskNode, TaskStates, Trace, Tracer
from bridge.redis import connect
from bridge.storage import DeadLetter, EntryFilter, Storage, stream_position

T = TypeVar("T")

#: Events that the list looks at, and those whose states it looks at to choose by them.
NEWEST, NEWEST_BY_STATE = 1000, 500
#: Dead letters that the list looks at.
NEWEST_LETTERS = 1000
#: Most rows of one page.
_ROWS = 100
#: Sources of events that are remembered; they never change.
_SOURCES = 5000
#: Events that are read in one round trip to learn their source, and entries without their events.
_CHUNK, _PAGE = 20, 50
#: Of a page that somebody looks at and waits for: how long a command may take.
_PATIENCE_S = 2.5

#: What the buttons above the list mean. A button shows the events that its question is true of.
BY_STATE: dict[str, Callable[[set[str]], bool]] = {
    "running": lambda states: bool(states & {"STARTED", "RETRY"}),
    "succeeded": lambda states: "SUCCESS" in states and states <= {"SUCCESS", "SKIPPED"},
    "failed": lambda states: "FAILURE" in states,
    "waiting": lambda states: bool(states & {"WAITING", "SENT"}),
}


@dataclass(frozen=True)
class Listing:
    """One page of a list.

    Arguments:
        rows: As the browser gets them.
        total: All that the list looks at.
        matching: Those of them that were asked for.
        letters: Dead letters there are.
        problem: Why it could not be searched, for a person.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    matching: int = 0
    letters: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Page:
    """What is known under one id: an event, its chain, or both.

    Arguments:
        event: None when it has expired, or when the id is that of a chain.
        handlers: Names of the handlers it may be replayed to; none when it is no longer in the journal.
    """

    event: Event | None
    trace: Trace | None
    handlers: tuple[str, ...] = ()


class EventData:
    """Reads what the pages show; may be shared by threads.

    Arguments:
        app: The application whose events they are, its handlers imported.
        max_events: How many of the newest entries of the journal are listed.
        max_read_bytes: About how much is read for one page: events, and letters with the events in them, may have a
            megabyte each.

    Raises:
        SettingsError: Its settings do not fit.
    """

    def __init__(self, app: Celery, *, max_events: int = NEWEST, max_read_bytes: int = 16 * 1024 * 1024) -> None:
        settings = BridgeSettings.load(app)
        self._max_events, self._max_read_bytes = max_events, max_read_bytes
        self.settings = settings.model_copy(update={"publish_attempts": 1})
        self.storage = Storage(connect(self.settings, _PATIENCE_S), self.settings)
        self.letters = self.storage.dead_letters
        self._history = History(self.storage)
        self._task_states = TaskStates(app, self.storage)
        self._tracer = Tracer(app, self.storage)
        self._headers: list[Header] = []
        self._sources: dict[str, str] = {}
        self._lock = threading.Lock()

    # Events

    def events(self, search: str, state: str, start: int, length: int) -> Listing:
        """Return a page of the newest events.

        Arguments:
            search: Part of an id, type or source, whatever its case; or a Redis glob over the whole type.
            state: One of :data:`BY_STATE`, or empty for all.
            start, length: Rows to leave out and most rows to return.
        """
        headers = _once_each(self._newest())[: NEWEST_BY_STATE if state else self._max_events]
        letters, total = self.letters.size().count, len(headers)
        try:
            found = self._found(search.strip(), headers)
        except ValueError as error:
            return Listing(total=total, letters=letters, problem=str(error))
        if state:
            pairs = list(zip(found, self._states(found), strict=True))
            chosen = [(one, tasks) for one, tasks in pairs if BY_STATE[state]({task.state for task in tasks})]
            shown = _rows_of(chosen, start, length)
            matching = len(chosen)
        else:
            matching = len(found)
            headers = _rows_of(found, start, length)
            shown = list(zip(headers, self._states(headers), strict=True))
        sources = self._read_sources([one for one, _ in shown])
        rows = [_event_row(one, tasks, sources.get(one.event_id, "")) for one, tasks in shown]
        return Listing(rows, total, matching, letters)

    def _newest(self) -> list[Header]:
        """Return the newest entries of the journal, newest first. Those that were read before are not read again."""
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
        """Return the sources of events by id, as far as they can be had now: only whole events tell them."""
        with self._lock:
            known = dict(self._sources)
        new = {one.entry_id: one.event_id for one in headers if one.event_id not in known}
        size, entry_ids = 0, list(new)
        for at in range(0, len(new), _CHUNK):
            entries = self.storage.journal.entries(entry_ids[at : at + _CHUNK])
            known |= {new[entry_id]: _source(entry.data or b"") for entry_id, entry in entries.items()}
            size += sum(len(entry.data or b"") for entry in entries.values())
            if size > self._max_read_bytes:
                break  # those that are missing come when the page asks again
        with self._lock:
            self._sources |= {event_id: known[event_id] for event_id in new.values() if event_id in known}
            while len(self._sources) > _SOURCES:
                del self._sources[next(iter(self._sources))]
        return known

    def page(self, any_id: str) -> Page | None:
        """Return what is known of an event id or a correlation id; None: nothing."""
        try:
            event = self._history.event(any_id)
        except InvalidEvent:  # somebody wrote something else to its key
            event = None
        trace = self._tracer.trace(any_id)
        if event is None and trace is None:
            return None
        handlers = registry.matching(event.type) if event is not None else ()
        event = event and self.settings.redaction.event(event)
        return Page(event, trace, tuple(handler.task_name for handler in handlers))

    def trace(self, any_id: str) -> Trace | None:
        """Return the chain that an event or a correlation id belongs to; None: unknown."""
        return self._tracer.trace(any_id)

    # Dead letters

    def dead(self, search: str, start: int, length: int) -> Listing:
        """Return a page of the newest dead letters.

        Arguments:
            search: Part of any text of a letter but its message, whatever its case.
            start, length: Rows to leave out and most rows to return.
        """
        count = self.letters.size().count
        total = min(count, NEWEST_LETTERS)
        part = search.strip().lower()
        if part:
            found = [letter for letter in self._newest_letters() if part in "\n".join(_texts(letter)).lower()]
            return Listing([self._letter_row(one) for one in _rows_of(found, start, length)], total, len(found), count)
        length = min(length, _ROWS)
        letters = list(islice(self._newest_letters(), start + length))[start:]
        return Listing([self._letter_row(one) for one in letters], total, total, count)

    def _newest_letters(self) -> Iterator[DeadLetter]:
        size = 0
        for letter in islice(self.letters.select(EntryFilter(), newest_first=True), NEWEST_LETTERS):
            size += len(letter.raw)
            yield letter.redacted_by(self.settings.redaction)
            if size > self._max_read_bytes:
                return

    def _letter_row(self, letter: DeadLetter) -> dict[str, Any]:
        return {
            "letter": letter.dead_letter_id,
            "at_ms": letter.at_ms,
            "reason": letter.reason,
            "type": letter.event_type,
            "id": letter.event_id,
            "handler": letter.handler,
            "origin": letter.origin,
            "task": letter.task_id,
            "detail": letter.detail,
            "problem": self._why_not(letter),
        }

    def _why_not(self, letter: DeadLetter) -> str:
        """Return why a dead letter cannot be retried, for a person; empty: it can."""
        if letter.handler and registry.get(letter.handler) is None:
            return f"there is no handler {letter.handler} here"
        if letter.redacted_event:  # which is whole for as long as it is kept
            expired = letter.at_ms + self.settings.event_ttl_ms < now_ms()
            return "its event has expired" if expired else ""
        try:
            letter.event()
        except InvalidEvent as error:
            return str(error)
        return ""


def _once_each(headers: Sequence[Header]) -> list[Header]:
    """Return each event once, where it came first: what a replay appended is the same event again."""
    first = {one.event_id: one for one in reversed(headers) if one.replay}
    first |= {one.event_id: one for one in reversed(headers) if not one.replay}
    return sorted(first.values(), key=lambda one: stream_position(one.entry_id), reverse=True)


def _rows_of(found: list[T], start: int, length: int) -> list[T]:
    return found[start : start + min(length, _ROWS)]


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


def _texts(letter: DeadLetter) -> tuple[str, ...]:
    return letter.reason, letter.event_type, letter.event_id, letter.handler or letter.origin, letter.detail

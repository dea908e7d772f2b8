"""The sources of a replay: the journal, or the dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bridge.bus import Admission
from bridge.errors import InvalidEvent
from bridge.events import Event
from bridge.handlers import Registry
from bridge.operations.history import History
from bridge.redis import attempt
from bridge.storage import DeadLetter, Entry, EntryFilter, Storage
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)

#: Journal entries read in one round trip; each may have a megabyte.
_PAGE = 100


@dataclass(frozen=True)
class ReplayItem:
    """An event of a source, or the *problem* because of which it cannot be replayed.

    Arguments:
        place: Stream id in the source.
        handler: Name of the only task to run; empty: all that match.
        dead_letter_id: The dead letter that is deleted when the event is replayed.
        signed: Whether the event is signed and the replay may sign it again, because its mark changes the JSON.
        task_id: The task of this dead letter, or empty. If its message arrives after the replay, it must not run.
    """

    place: str
    event_id: str
    event_type: str
    event: Event | None
    handler: str = ""
    dead_letter_id: str = ""
    problem: str = ""
    signed: bool = False
    task_id: str = ""


class Source(Protocol):
    """A source of events: the stream *key*, within the time range of *selection*."""

    key: str
    selection: EntryFilter

    def read(self, first: str, last: str) -> Iterator[ReplayItem]:
        """Yield the selected events between two arguments of XRANGE, the oldest first."""


class JournalSource:
    """The events of the journal, for all handlers of the group or for one.

    Entries of earlier replays are left out, because the first entry of their events is selected already.

    Arguments:
        storage: The bus, as the group sees it.
        selection: ``since_ms``, ``until_ms`` (when the event was appended), ``event_type`` and ``ids``.
        handler: Name of the only task to run; empty: all that match.
        accepts: Whether an event type matches the patterns of that handler.
    """

    def __init__(
        self,
        storage: Storage,
        selection: EntryFilter,
        handler: str = "",
        accepts: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._client = storage.client
        self._settings = storage.settings
        self._admission = Admission(storage.settings)
        self.key = storage.keys.journal
        self.selection = selection
        self._handler = handler
        self._accepts = accepts

    def read(self, first: str, last: str) -> Iterator[ReplayItem]:
        """See :class:`Source`."""
        while rows := self._page(first, last):
            for entry_id, fields in rows:
                event_id = fields.get(b"id", b"").decode(errors="replace")
                event_type = fields.get(b"type", b"").decode(errors="replace")
                if (
                    b"group" not in fields
                    and self._accepts(event_type)
                    and self.selection.matches_event(event_type, event_id)
                ):
                    yield self._item(entry_id.decode(), event_id, event_type, fields.get(b"event", b""))
            first = f"({rows[-1][0].decode()}"

    def _page(self, first: str, last: str) -> Any:
        if first.startswith("(") and not self._range(first[1:], first[1:]):
            extra = log_fields(Action.REPLAY_SOURCE_TRIMMED, group=self._settings.group, entry_id=first[1:])
            text = "Replay: the journal was trimmed past entry %s; some events may be missing."
            log.warning(text, first[1:], extra=extra)
        return self._range(first, last)

    def _range(self, first: str, last: str) -> Any:
        what = "reading the journal"
        return attempt(self._settings, what, lambda: self._client.xrange(self.key, first, last, count=_PAGE))

    def _item(self, place: str, event_id: str, event_type: str, data: bytes) -> ReplayItem:
        try:
            event = self._admission.read(Entry(place.encode(), data)).event
            signed = self._admission.can_be_signed_again(event, data, dispatched=False)
        except InvalidEvent as error:
            return ReplayItem(place, event_id, event_type, None, problem=str(error))
        if not (self._accepts(event.type) and self.selection.matches_event(event.type, event.id)):
            problem = f"its journal entry describes it wrongly: it holds event {event.id} ({event.type})"
            return ReplayItem(place, event_id, event_type, None, problem=problem)
        return ReplayItem(place, event_id, event_type, event, self._handler, signed=signed)


class DeadLetterSource:
    """The dead letters of the group. Each is moved to the handler that failed.

    A dead letter cannot be replayed if it has no complete event (a message that is not a valid event, or a task whose
    event was lost) or if its handler no longer exists or receives no events of its type. For a redacted dead letter the
    complete event is looked up.

    Arguments:
        storage: The bus, as the group sees it.
        selection: Which dead letters.
        handlers: The handlers of the application.
    """

    def __init__(self, storage: Storage, selection: EntryFilter, handlers: Registry) -> None:
        self._admission = Admission(storage.settings)
        self.key = storage.keys.dead(storage.settings.group)
        self._dead_letters = storage.dead_letters
        self._history = History(storage)
        self.selection = selection
        self._handlers = handlers

    def read(self, first: str, last: str) -> Iterator[ReplayItem]:
        """See :class:`Source`."""
        return map(self._item, self._dead_letters.select(self.selection, between=(first, last)))

    def _item(self, dead_letter: DeadLetter) -> ReplayItem:
        event, signed, problem = None, False, ""
        try:
            if part := dead_letter.redacted_event:
                event, data, dispatched = *self._kept(part), False
            else:
                event, data, dispatched = dead_letter.event(), dead_letter.raw, dead_letter.handler != ""
            signed = self._admission.can_be_signed_again(event, data, dispatched=dispatched)
        except InvalidEvent as error:
            event, problem = None, str(error)
        place, event_type = dead_letter.dead_letter_id, dead_letter.event_type or (event.type if event else "")
        handler = self._handlers.get(dead_letter.handler)
        if dead_letter.handler and handler is None:
            event, problem = None, f"this application has no handler {dead_letter.handler}"
        elif handler is not None and event is not None and not handler.matches(event.type):
            event, problem = None, f"handler {handler.task_name} receives no events of type {event_type}"
        event_id = dead_letter.event_id or (event.id if event else "")
        task_id = dead_letter.task_id
        return ReplayItem(place, event_id, event_type, event, dead_letter.handler, place, problem, signed, task_id)

    def _kept(self, part: Event) -> tuple[Event, bytes]:
        """Return the complete event of a redacted dead letter, and its JSON."""
        data = self._history.read([part.id]).get(part.id)
        if data is None:
            raise InvalidEvent("expired", "", "the event has expired, and the dead letter holds a redacted copy only")
        event = Event.decode(data, max_bytes=len(data))
        if (event.id, event.type) != (part.id, part.type):
            raise InvalidEvent("expired", "", "the event has expired, and another event has its id")
        return event, data

"""Where the events of a replay come from: the journal, or the dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bridge.bus import Admission
from bridge.errors import InvalidEvent
from bridge.events import Event
from bridge.operations.history import History
from bridge.redis import attempt
from bridge.storage import DeadLetter, Entry, EntryFilter, Storage
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)

#: Entries of the journal read in one round trip; each may have a megabyte.
_PAGE = 100


@dataclass(frozen=True)
class ReplayItem:
    """What a source found: an event to replay, or the *problem* for which it cannot be.

    Arguments:
        place: Its stream id in the source.
        handler: The one task it is for; empty: all that match.
        dead_letter_id: The dead letter that goes when the event is replayed.
        signed: The event is signed, so that the replay may sign it anew: its mark changes the text.
    """

    place: str
    event_id: str
    event_type: str
    event: Event | None
    handler: str = ""
    dead_letter_id: str = ""
    problem: str = ""
    signed: bool = False


class Source(Protocol):
    """Where the events of a replay come from: the stream *key*, in the time that *selection* says."""

    key: str
    selection: EntryFilter

    def read(self, first: str, last: str) -> Iterator[ReplayItem]:
        """Yield what was asked for between two stream ids as XRANGE takes them, the oldest first."""


class JournalSource:
    """The events of the journal, for all handlers of the group or one of them.

    Entries that a replay appended are left out: their events are there already, under their first entry.

    Arguments:
        storage: The bus, as the group sees it.
        selection: ``since_ms``, ``until_ms`` (when the journal took the event), ``event_type`` and ``ids``.
        handler: Name of the task they are for; all that match unless given.
        accepts: Whether an event type is for that handler.
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
                event_id, event_type = (fields.get(name, b"").decode(errors="replace") for name in (b"id", b"type"))
                if (
                    b"group" not in fields
                    and self._accepts(event_type)
                    and self.selection.matches_event(event_type, event_id)
                ):
                    yield self._candidate(entry_id.decode(), event_id, event_type, fields.get(b"event", b""))
            first = f"({rows[-1][0].decode()}"

    def _page(self, first: str, last: str) -> Any:
        if first.startswith("(") and not self._range(first[1:], first[1:]):
            extra = log_fields(Action.REPLAY_SOURCE_TRIMMED, group=self._settings.group, entry_id=first[1:])
            text = "the journal was trimmed beyond %s: what came next may have expired unreplayed"
            log.warning(text, first[1:], extra=extra)
        return self._range(first, last)

    def _range(self, first: str, last: str) -> Any:
        what = "reading the journal"
        return attempt(self._settings, what, lambda: self._client.xrange(self.key, first, last, count=_PAGE))

    def _candidate(self, place: str, event_id: str, event_type: str, data: bytes) -> ReplayItem:
        try:
            event = self._admission.read(Entry(place.encode(), data)).event
            signed = self._admission.can_be_signed_again(event, data, dispatched=False)
        except InvalidEvent as error:
            return ReplayItem(place, event_id, event_type, None, problem=str(error))
        return ReplayItem(place, event_id, event_type, event, self._handler, signed=signed)


class DeadLetterSource:
    """The dead letters of the group: each is moved, to the handler that failed.

    A letter without a whole event stays: a message that was refused as an event, or a task whose event was lost. So
    does one of a handler that is gone. Of one that what is sensitive was left out of, the event is looked up.

    Arguments:
        storage: The bus, as the group sees it.
        selection: Which letters.
        handlers: Names of the tasks there are.
    """

    def __init__(self, storage: Storage, selection: EntryFilter, handlers: Container[str]) -> None:
        self._admission = Admission(storage.settings)
        self.key = storage.keys.dead(storage.settings.group)
        self._letters = storage.dead_letters
        self._history = History(storage)
        self.selection = selection
        self._handlers = handlers

    def read(self, first: str, last: str) -> Iterator[ReplayItem]:
        """See :class:`Source`."""
        return map(self._candidate, self._letters.select(self.selection, between=(first, last)))

    def _candidate(self, letter: DeadLetter) -> ReplayItem:
        event, signed, problem = None, False, ""
        try:
            if part := letter.redacted_event:
                event, data, dispatched = *self._kept(part), False
            else:
                event, data, dispatched = letter.event(), letter.raw, letter.handler != ""
            signed = self._admission.can_be_signed_again(event, data, dispatched=dispatched)
        except InvalidEvent as error:
            event, problem = None, str(error)
        if letter.handler and letter.handler not in self._handlers:
            event, problem = None, f"there is no handler {letter.handler} here"
        place, event_type = letter.dead_letter_id, letter.event_type or (event.type if event else "")
        event_id = letter.event_id or (event.id if event else "")
        return ReplayItem(place, event_id, event_type, event, letter.handler, place, problem, signed)

    def _kept(self, part: Event) -> tuple[Event, bytes]:
        """Return the whole event of a letter that has a part of it, and its JSON."""
        data = self._history.read([part.id]).get(part.id)
        if data is None:
            raise InvalidEvent(
                "expired", "", "the event has expired, and the letter is without what is sensitive in it"
            )
        event = Event.decode(data, max_bytes=len(data))
        if (event.id, event.type) != (part.id, part.type):
            raise InvalidEvent("expired", "", "the event has expired, and another one is in its place")
        return event, data

"""An event as the journal holds it: what its dispatch needs, and the rest when somebody asks."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple, Self

from pydantic_core import from_json

from bridge.events.event import STORED_START, Event
from bridge.events.validation import check_id, check_type, in_short, is_plain, replay_of


class Record(NamedTuple):
    """An event with its encoded form, so that it is encoded once on its way; and as it was *heard*, if that differs."""

    event: Event
    data: bytes
    heard: bytes = b""

    @property
    def fingerprint(self) -> str:
        """Of the broadcast."""
        return fingerprint(self.event.type, self.heard or self.data)


def fingerprint(event_type: str, data: bytes) -> str:
    """Return a short hash of a broadcast: its channel and its bytes."""
    return blake2b(event_type.encode() + b" " + data, digest_size=6).hexdigest()


class StoredEvent:
    """What was validated before it was appended, so that here a look at its form is enough; make it with :meth:`read`.

    Arguments:
        data: Its JSON, as a task gets it.
        event: The whole event, if it is known.
    """

    __slots__ = ("_event", "data", "id", "replay", "type")

    def __init__(self, id: str, type: str, replay: str | None, data: bytes, event: Event | None) -> None:
        self.id = id
        self.type = type
        self.replay = replay
        self.data = data
        self._event = event

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read an event from a journal entry. Anybody may have written it: what looks odd is decoded like foreign ones.

        Raises:
            InvalidEvent: It is none.
        """
        try:
            # Three times as fast as our own decoder, to which it leaves numbers that do not fit and the like.
            fields = from_json(data, allow_inf_nan=False)
        except ValueError:
            fields = None
        if type(fields) is dict and is_plain(fields) and data.startswith(STORED_START):
            check_id(fields["id"])
            check_type(fields["type"])
            return cls(fields["id"], fields["type"], replay_of(fields.get("metadata")), data, None)
        event, kept = Event.receive(data, max_bytes=len(data))
        return cls(event.id, event.type, event.replay, kept, event)

    @property
    def event(self) -> Event:
        """The whole event."""
        if self._event is None:
            self._event = Event.decode(self.data, max_bytes=len(self.data))
        return self._event

    def __repr__(self) -> str:
        return in_short(self.type, self.id)

"""One dead letter: its fields, how it is stored and what of it may be shown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from bridge.errors import InvalidEvent
from bridge.events import EncodedEvent, Event, Redaction, now_ms, wire
from bridge.telemetry import Action, log_fields

#: Bytes that are kept of a message that did not decode: enough to recognise it, too few to fill the server.
_RAW_BYTES = 4096
#: Bytes of a text that are kept. Of a traceback its end is kept, of every other text its start.
_TEXT_BYTES = 1000
_TRACEBACK_BYTES = 2048
#: Reasons for which the event is not replayed although all of it was kept: the field and what is wrong with it.
_NOT_REPLAYED = {
    "channel_mismatch": ("type", "it was received on the channel of another type"),
    "id_conflict": ("id", "another event has this id; publish it again under a new id"),
    "signature": ("signature", "it is not signed as bridge_require_signature requires; its publisher must sign it"),
    "replay_mismatch": ("metadata.replay", "its journal entry was addressed by another program than a replay"),
    "hop_limit": ("metadata.hops", "its chain is longer than bridge_max_hops; publish it again to start a new chain"),
}


@dataclass(frozen=True)
class DeadLetter:
    """One failure.

    Arguments:
        reason: Stable short name, e.g. ``json``, ``channel_mismatch``, ``payload``, ``failure``.
        detail: What went wrong, as text for a person.
        origin: Where the message came from: a channel, a key, or ``journal``.
        raw: The message; if it did not decode, its first 4 kB.
        size, sha256: Of the whole message; bytes, and hexadecimal.
        event_id, event_type: Of the event, if the message decoded.
        handler, task_id: Of the Celery task, if there was one.
        traceback: The end of the traceback, if a task failed.
        attempts: How often the task was tried.
        at_ms: When the dead letter was written, ms since the epoch.
        redacted: 1 when parts were removed, see :meth:`redacted_by`.
        dead_letter_id: Its stream id, assigned when it is written.
    """

    reason: str
    detail: str
    origin: str
    raw: bytes
    size: int = 0
    event_id: str = ""
    event_type: str = ""
    handler: str = ""
    task_id: str = ""
    at_ms: int = 0
    traceback: str = ""
    attempts: int = 0
    sha256: str = ""
    redacted: int = 0
    dead_letter_id: str = ""

    @classmethod
    def of_message(cls, reason: str, detail: str, origin: str, data: bytes) -> DeadLetter:
        """Return the dead letter of a message that is not a valid event."""
        return cls(reason, detail, origin, data[:_RAW_BYTES], size=len(data), sha256=_sha256(data))

    @classmethod
    def of_event(
        cls, reason: str, detail: str, event: Event | EncodedEvent, data: bytes, handler: str, task_id: str, **more: Any
    ) -> DeadLetter:
        """Return the dead letter of an event that *handler* cannot process."""
        more = {"sha256": _sha256(data)} | more
        return cls(reason, detail, "journal", data, len(data), event.id, event.type, handler, task_id, **more)

    def event(self) -> Event:
        """Return the event that this dead letter holds.

        Raises:
            InvalidEvent: It holds no event, only parts of one, or an event that must not be replayed as it is.
        """
        if self.redacted:
            raise InvalidEvent("redacted", "", "what bridge_redact_paths names was removed")
        if len(self.raw) < self.size:
            raise InvalidEvent("size", "", f"only {len(self.raw)} of {self.size} bytes were kept")
        if self.reason in _NOT_REPLAYED:
            raise InvalidEvent(self.reason, *_NOT_REPLAYED[self.reason])
        return Event.decode(self.raw, max_bytes=len(self.raw))

    @property
    def redacted_event(self) -> Event | None:
        """The event without the parts that were removed; None when nothing was removed, or there is no such event."""
        if not self.redacted or self.reason in _NOT_REPLAYED:
            return None
        return self._decoded()

    def _decoded(self) -> Event | None:
        try:
            return Event.decode(self.raw, max_bytes=len(self.raw))
        except InvalidEvent:
            return None

    def redacted_by(self, redaction: Redaction) -> DeadLetter:
        """Return this dead letter as it may be kept and shown.

        A message that is not an event has no paths, so all of it is removed.
        """
        if not (redaction and self.raw):
            return self
        event = self._decoded() if self.redacted or len(self.raw) == self.size else None
        if event is None:
            return replace(self, raw=b"", redacted=1)
        fields = event.to_dict()
        values = redaction.values(fields)
        if not values:
            return self
        detail = redaction.text(self.detail, values)
        traceback = redaction.text(self.traceback, values)
        raw = wire.dumps(redaction.fields(fields))
        return replace(self, raw=raw, detail=detail, traceback=traceback, redacted=1)

    @property
    def failure_hash(self) -> str:
        """The same for all dead letters of one failure, of which one is written."""
        failure = (self.reason, self.origin, self.task_id or self.sha256 or self.raw)
        return hashlib.blake2b(repr(failure).encode(), digest_size=16).hexdigest()

    def encode(self) -> list[Any]:
        """Return names and values in turn, as the stream holds them, with the current time."""
        values = dict(vars(self)) | {"at_ms": now_ms()}
        del values["dead_letter_id"]
        if not self.redacted:
            del values["redacted"]  # without bridge_redact_paths the field is not stored
        values |= {name: _shortened(value) for name, value in values.items() if isinstance(value, str)}
        values["traceback"] = _encodable(self.traceback)[-_TRACEBACK_BYTES:].decode(errors="ignore")
        return [part for pair in values.items() for part in pair]

    @classmethod
    def decode(cls, dead_letter_id: bytes, stored: Mapping[bytes, bytes]) -> DeadLetter:
        """Return the dead letter in a stream entry, which another version may have written with other fields."""
        values: dict[str, Any] = dict.fromkeys(("reason", "detail", "origin"), "") | {"raw": stored.get(b"raw", b"")}
        for name, value in stored.items():
            kind = _TYPES.get(name.decode(errors="replace"))
            if kind == "str":
                values[name.decode()] = value.decode(errors="replace")
            elif kind == "int":
                values[name.decode()] = int(value) if value.isdigit() else 0
        return cls(**values | {"dead_letter_id": dead_letter_id.decode()})


#: Field to the name of its type.
_TYPES = {field.name: field.type for field in fields(DeadLetter)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shortened(text: str) -> str:
    return _encodable(text)[:_TEXT_BYTES].decode(errors="ignore")


def _encodable(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # UTF-8 has no encoding of half a surrogate pair


def dead_letter_fields(action: Action, dead_letter: DeadLetter, group: str) -> dict[str, Any]:
    """Return ``extra`` for a log call about a dead letter."""
    return log_fields(
        action,
        event_id=dead_letter.event_id,
        event_type=dead_letter.event_type,
        task_id=dead_letter.task_id,
        handler=dead_letter.handler,
        group=group,
        reason=dead_letter.reason,
        origin=dead_letter.origin,
    )

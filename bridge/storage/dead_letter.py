"""One dead letter: what it holds, how it is stored, what of it may be shown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from bridge.errors import InvalidEvent
from bridge.events import EncodedEvent, Event, Redaction, now_ms, wire
from bridge.telemetry import Action, log_fields

#: Bytes of a message that did not decode which are kept; enough to recognise it, too few to fill the server.
_RAW_BYTES = 4096
#: Reasons for which a whole event is not taken at its word, with the field and what is wrong with it.
_NOT_THAT_EVENT = {
    "channel_mismatch": ("type", "it came on the channel of another type"),
    "id_conflict": ("id", "another event has this id; publish it anew under an id of its own"),
    "signature": ("signature", "it is not signed as bridge_require_signature demands; its publisher has to sign it"),
    "hop_limit": ("metadata.hops", "its chain is longer than bridge_max_hops; publish it anew to begin another"),
}


@dataclass(frozen=True)
class DeadLetter:
    """One failure.

    Arguments:
        reason: Stable short name, e.g. ``json``, ``channel_mismatch``, ``payload``, ``failure``.
        detail: What went wrong, for a person.
        origin: Where it came from: a channel, a key, or ``journal``.
        raw: The message; of one that did not decode, the first 4 kB.
        size, sha256: Of the full message, bytes and hex.
        event_id, event_type: Of the event, when it decoded.
        handler, task_id: Of the Celery task, when it got that far.
        traceback: The end of it, when a task failed.
        attempts: How often the task was tried.
        at_ms: When it was written, ms since the epoch.
        redacted: 1 when parts of it were left out, see :meth:`shown`.
        letter_id: Its place among the dead letters; given when it is written.
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
    letter_id: str = ""

    @classmethod
    def of_message(cls, reason: str, detail: str, origin: str, data: bytes) -> DeadLetter:
        """A message that is no event."""
        return cls(reason, detail, origin, data[:_RAW_BYTES], size=len(data), sha256=_sha256(data))

    @classmethod
    def of_event(
        cls, reason: str, detail: str, event: Event | EncodedEvent, data: bytes, handler: str, task_id: str, **more: Any
    ) -> DeadLetter:
        """An event that *handler* cannot process."""
        more = {"sha256": _sha256(data)} | more
        return cls(reason, detail, "journal", data, len(data), event.id, event.type, handler, task_id, **more)

    def event(self) -> Event:
        """Return the event it holds.

        Raises:
            InvalidEvent: It holds none, or only parts of one.
        """
        if self.redacted:
            raise InvalidEvent("redacted", "", "what bridge_redact_paths names was left out")
        if len(self.raw) < self.size:
            raise InvalidEvent("size", "", f"only {len(self.raw)} of {self.size} bytes were kept")
        if self.reason in _NOT_THAT_EVENT:
            raise InvalidEvent(self.reason, *_NOT_THAT_EVENT[self.reason])
        return Event.decode(self.raw, max_bytes=len(self.raw))

    @property
    def redacted_event(self) -> Event | None:
        """The event that it is about, without the parts that were left out; None when it has it whole, or none."""
        if not self.redacted or self.reason in _NOT_THAT_EVENT:
            return None
        return self._decoded()

    def _decoded(self) -> Event | None:
        try:
            return Event.decode(self.raw, max_bytes=len(self.raw))
        except InvalidEvent:
            return None

    def redacted_by(self, redaction: Redaction) -> DeadLetter:
        """Return it as it may be kept and shown. What is no event has no paths: nothing of it is."""
        if not (redaction and self.raw):
            return self
        event = self._decoded() if self.redacted or len(self.raw) == self.size else None
        if event is None:
            return replace(self, raw=b"", redacted=1)
        fields = event.to_dict()
        values = redaction.values(fields)
        if not values:
            return self
        detail, traceback = (redaction.text(text, values) for text in (self.detail, self.traceback))
        raw = wire.dumps(redaction.fields(fields))
        return replace(self, raw=raw, detail=detail, traceback=traceback, redacted=1)

    @property
    def mark(self) -> str:
        """What makes two letters the same failure."""
        what = (self.reason, self.origin, self.task_id or self.sha256 or self.raw)
        return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()


#: Field to the name of its type.
_KINDS = {field.name: field.type for field in fields(DeadLetter)}


def _written(letter: DeadLetter) -> list[Any]:
    return written(
        {
            name: value
            for name, value in vars(letter).items()
            if name != "letter_id"
            and (name != "redacted" or value)  # where nothing is sensitive nothing else is stored
        }
    )


def _letter(letter_id: bytes, stored: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(**read(stored, _KINDS) | {"letter_id": letter_id.decode()})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


#: Bytes of a text that are kept. The end of a traceback tells most, the beginning of everything else.
_TEXT_BYTES = 1000
_TRACEBACK_BYTES = 2048


def written(letter: Mapping[str, Any]) -> list[Any]:
    """Return fields and values of a letter as they are stored, with the time."""
    stored = dict(letter) | {"at_ms": now_ms()}
    stored |= {name: _text(value) for name, value in stored.items() if isinstance(value, str)}
    stored["traceback"] = _encodable(letter["traceback"])[-_TRACEBACK_BYTES:].decode(errors="ignore")
    return [part for pair in stored.items() for part in pair]


def read(stored: Mapping[bytes, bytes], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a letter by field.

    Arguments:
        kinds: Field to the name of its type. What is stored may have other fields, or fewer.
    """
    values: dict[str, Any] = dict.fromkeys(("reason", "detail", "origin"), "") | {"raw": stored.get(b"raw", b"")}
    for name, value in stored.items():
        kind = kinds.get(name.decode(errors="replace"))
        if kind == "str":
            values[name.decode()] = value.decode(errors="replace")
        elif kind == "int":
            values[name.decode()] = int(value) if value.isdigit() else 0
    return values


def _text(text: str) -> str:
    return _encodable(text)[:_TEXT_BYTES].decode(errors="ignore")


def _encodable(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # half a surrogate pair has no UTF-8


def dead_letter_fields(action: Action, letter: DeadLetter, group: str) -> dict[str, Any]:
    """Return ``extra`` of a log call about a dead letter."""
    return log_fields(
        action,
        event_id=letter.event_id,
        event_type=letter.event_type,
        task_id=letter.task_id,
        handler=letter.handler,
        group=group,
        reason=letter.reason,
        origin=letter.origin,
    )

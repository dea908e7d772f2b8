"""The event: one frozen value, its wire format, and how one event follows from another.

The wire format is fixed, since other programs use it: one JSON object with ``id``, ``type``, ``payload``,
``timestamp`` (ms since the epoch), and optionally ``source``, ``metadata``, ``correlationId``. What other programs
write instead is translated, see ``dialects.py``. Unknown fields are preserved.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from typing_extensions import TypeVar

from bridge.errors import InvalidEvent
from bridge.events import wire
from bridge.events.cause import Cause
from bridge.events.clock import moment_of, now_ms
from bridge.events.dialects import TYPESCRIPT_BUS_SOURCE, names_no_type, received, renamed, translated
from bridge.events.validation import (
    SIGNATURE,
    check_id,
    check_type,
    hops_of,
    in_short,
    is_plain,
    is_signature,
    replay_of,
)

PayloadT = TypeVar("PayloadT", default=Any)

_ORDER = ("id", "type", "payload", "timestamp", "source", "metadata", "correlationId")
#: How the JSON of a stored event begins. Events of other programs are encoded again if theirs does not.
STORED_START = b'{"id":"'
_PLAIN = frozenset(_ORDER)
#: Longest id of a cause or chain that is indexed or passed on; other programs choose it.
_MAX_CAUSE_LENGTH = 200
_set = object.__setattr__
#: An event of another program; its JSON, or None if it must be encoded again; whether its source was hidden by the
#: marker of the TypeScript bus; and whether half a surrogate pair was replaced in it.
Received = tuple["Event[Any]", bytes | None, bool, bool]
#: Validation context of data from ``wire.loads``, which consists of plain JSON types already.
_FROM_WIRE = {"from_wire": True}


class Event(BaseModel, Generic[PayloadT]):
    """One event. The payload of ``Event[DreamCreated]`` is validated as that pydantic model.

    Arguments:
        type: What happened, e.g. ``dream.created``; case-sensitive.
        payload: Any JSON; pydantic models, datetimes, UUIDs and Decimals are converted.
        id: Unique id, the idempotency key of the event; a random UUID by default.
        timestamp: When it happened, ms since the epoch; now by default. Invalid values of other programs are
            preserved, see :attr:`occurred_at`.
        source: Program that published it.
        metadata: JSON object about the event. The bridge uses ``causationId``, ``hops``, ``taskId`` and ``replay``.
        correlation_id: Id shared by the events of one chain. The first one may have none: see :attr:`chain_id`.

    Raises:
        InvalidEvent: A field violates the wire format or a limit.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    id: str = Field(default_factory=lambda: str(uuid.uuid4()))
    type: str
    payload: PayloadT = Field(default=None, validate_default=False)  # type: ignore[assignment]  # null when missing
    timestamp: int | float | str | bool | None = Field(default_factory=now_ms)
    source: str | None = None
    metadata: dict[str, Any] | None = None
    correlation_id: str | None = Field(default=None, alias="correlationId")

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, build: Callable[[Any], Any], info: ValidationInfo) -> Any:
        if isinstance(data, Event):
            data = data.to_dict() | {"timestamp": data.timestamp}  # an unknown time stays unknown
        if not isinstance(data, dict):
            raise InvalidEvent("not_object", "", f"an event is a JSON object, not {type(data).__name__}")
        if info.context is _FROM_WIRE:
            fields = translated(data)
            fields.setdefault("timestamp", None)  # the time is unknown, and now would be wrong
        else:
            fields = translated({name: wire.jsonable(value, name) for name, value in data.items()})
        try:
            event = build(fields)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path = ".".join(str(part) for part in first["loc"])
            raise InvalidEvent(path.partition(".")[0] or "event", path, first["msg"]) from error
        check_id(event.id)
        check_type(event.type)
        return event

    @classmethod
    def decode(cls, data: bytes, *, max_bytes: int, channel_type: str | None = None) -> Event:
        """Decode an event that another program sent.

        Arguments:
            data: One JSON object in UTF-8.
            max_bytes: Largest size accepted.
            channel_type: The type that the channel names, if it was received on one. Used if the event has no type.

        Raises:
            InvalidEvent: With the reason; among others ``no_id``, ``no_type``, and ``channel_mismatch`` when message
                and channel disagree: else a publisher with permission for one channel could publish events of any type.
        """
        return cls.receive(data, max_bytes=max_bytes, channel_type=channel_type)[0]

    @classmethod
    def receive(cls, data: bytes, *, max_bytes: int, channel_type: str | None = None) -> Received:
        """Decode as :meth:`decode`; return also what intake needs to know.

        Raises:
            InvalidEvent: As :meth:`decode`.
        """
        repaired = False
        try:
            fields = wire.loads(data, max_bytes)
        except InvalidEvent as error:
            if error.reason != "surrogate":
                raise
            fields, repaired = wire.repaired(data), True
            if isinstance(fields, dict) and is_signature(fields.get(SIGNATURE)):
                raise
        if not isinstance(fields, dict):
            raise InvalidEvent("not_object", "", f"an event is a JSON object, not {type(fields).__name__}")
        event: Event | None = cls._plain(fields)
        hides_source = fields.get("source") == TYPESCRIPT_BUS_SOURCE
        as_it_came = event is not None and data.startswith(STORED_START) and not (hides_source or repaired)
        if event is None:
            event = cls.model_validate(received(fields, channel_type), context=_FROM_WIRE)
        if channel_type is not None and event.type != channel_type and not names_no_type(channel_type, fields):
            text = f"{event.type!r} was received on the channel of {channel_type[:80]!r}"
            raise InvalidEvent("channel_mismatch", "type", text)
        # Another encoding would invalidate a signature.
        as_it_came |= SIGNATURE in fields and is_signature(fields[SIGNATURE]) and is_plain(fields)
        return event, data if as_it_came else None, hides_source, repaired

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Event[PayloadT]:
        """Rebuild an event from the result of :meth:`to_dict`, such as the argument of a task message."""
        return cls._plain(fields) or cls.model_validate(fields, context=_FROM_WIRE)

    @classmethod
    def _plain(cls, fields: dict[str, Any]) -> Self | None:
        """Return the event that validation would make of *fields*, in half the time, if their types are the usual ones.

        It sets what pydantic's ``model_construct()`` sets, which takes four times as long. A test compares the two.
        """
        if not (cls is Event and fields.keys() <= _PLAIN and is_plain(fields)):
            return None
        check_id(fields["id"])
        check_type(fields["type"])
        get = fields.get
        values = {
            "id": fields["id"],
            "type": fields["type"],
            "payload": get("payload"),
            "timestamp": fields["timestamp"],
            "source": None if (source := get("source")) == TYPESCRIPT_BUS_SOURCE else source,
            "metadata": get("metadata"),
            "correlation_id": get("correlationId"),
        }
        event = cls.__new__(cls)
        _set(event, "__dict__", values)
        _set(event, "__pydantic_fields_set__", set(values))
        _set(event, "__pydantic_extra__", {})
        _set(event, "__pydantic_private__", None)
        return event

    def to_dict(self) -> dict[str, Any]:
        """Return the event in its wire format, as plain JSON types. Optional fields without a value are left out."""
        known = {
            "id": self.id,
            "type": self.type,
            "payload": self._json_payload,
            "timestamp": self.timestamp,
            "source": self.source,
            "metadata": self.metadata,
            "correlationId": self.correlation_id,
        }
        optional = _ORDER[3:]
        present = {name: known[name] for name in _ORDER if name not in optional or known[name] is not None}
        return present | (self.__pydantic_extra__ or {})

    __json__ = to_dict  # kombu's JSON encoder calls a method of this name, so an Event can be an argument of any task

    def encode(self, *, max_bytes: int | None = None) -> bytes:
        """Return the event as JSON; without *max_bytes*, of any size.

        Raises:
            InvalidEvent: It is larger than *max_bytes*; ``field`` is the largest field.
        """
        fields = self.to_dict()
        data = wire.dumps(fields)
        if max_bytes is not None and len(data) > max_bytes:
            largest = max(fields, key=lambda name: len(wire.dumps(fields[name])))
            raise InvalidEvent("size", largest, f"the event has {len(data)} bytes, the limit is {max_bytes}")
        return data

    @property
    def digest(self) -> str:
        """Hash of type and payload. Two events with the same id and different digests are a conflict.

        Source, timestamp and metadata are left out, since the copies of an event in its key and on its channel may
        differ in them.
        """
        content = wire.dumps([self.type, self._json_payload], sort_keys=True)
        return hashlib.blake2b(content, digest_size=12).hexdigest()

    @property
    def _json_payload(self) -> Any:
        # Only the payload of Event[Model] is not plain JSON types.
        return self.payload if type(self) is Event else wire.jsonable(self.payload, "payload")

    @property
    def occurred_at(self) -> datetime | None:
        """The timestamp as a datetime: ms, seconds or ISO 8601; None if it is nothing of that kind."""
        return moment_of(self.timestamp)

    @property
    def hops(self) -> int:
        """Number of publications between the first event of the chain and this one; 0 for the first."""
        return hops_of(self.metadata)

    @property
    def follows(self) -> str | None:
        """Id of the event that caused this one, or else of its chain; None if it is the first of its chain."""
        cause = (self.metadata or {}).get("causationId") or self.correlation_id
        usable = isinstance(cause, str) and 0 < len(cause) <= _MAX_CAUSE_LENGTH and cause.isascii()
        return cause if usable and cause != self.id else None

    @property
    def replay(self) -> str | None:
        """Name of the replay that published this event again; None if none did."""
        return replay_of(self.metadata)

    @property
    def chain_id(self) -> str:
        """Id that it shares with the events that follow from it: a correlation id of 1 to 200 characters, or its id."""
        chain = self.correlation_id
        return chain if chain and len(chain) <= _MAX_CAUSE_LENGTH else self.id

    @property
    def cause(self) -> Cause:
        """This event as the cause of others."""
        return Cause(self.id, self.chain_id, self.hops)

    def child(self, type: str, payload: Any = None, **fields: Any) -> Event:
        """Return a new event that this one caused.

        It has the same correlation id, which is by default the id of the first event of the chain, unless that has more
        than 200 characters. Its metadata records the cause as ``causationId`` and the length of the chain as ``hops``.

        Arguments:
            type: Of the new event.
            payload: Of the new event.
            fields: Any other field of :class:`Event`. They take precedence, except for causationId and hops.
        """
        return caused_by(self.cause, type, payload, **fields)

    def __repr__(self) -> str:
        return in_short(self.type, self.id)

    __str__ = __repr__

    def __hash__(self) -> int:
        return hash(self.id)


def caused_by(cause: Cause | None, type: str, payload: Any = None, **fields: Any) -> Event:
    """Return a new event that *cause* caused; without a cause it starts a chain."""
    if cause is not None:
        fields = renamed(fields)
        fields.setdefault("correlationId", cause.correlation_id or None)
        chain = {"causationId": cause.event_id, "hops": cause.hops + 1, "taskId": cause.task_id}
        chain = {name: value for name, value in chain.items() if value != ""}
        # The chain takes precedence: a caller that passes on the parent's metadata must not disable the hop limit.
        fields["metadata"] = (fields.get("metadata") or {}) | chain
    return Event(type=type, payload=payload, **fields)

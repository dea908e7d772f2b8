"""An event together with its JSON, which event keys, journal entries and task messages contain.

An event is encoded once, by its publisher, and its JSON is passed on as it is. Most steps from the channel to the task
message need only the id, the type and these bytes. The rest is decoded on demand.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Self

from pydantic_core import from_json

from bridge.errors import InvalidEvent
from bridge.events import wire
from bridge.events.event import STORED_START, Event
from bridge.events.trace_context import TRACEPARENT, TraceContext, headers_in_json, trace_context_of
from bridge.events.validation import check_id, check_type, hops_of, in_short, is_plain, replay_of


class EncodedEvent:
    """A valid event and its JSON. Make one with :meth:`of`, :meth:`receive` or :meth:`read`.

    Arguments:
        id, type: Of the event.
        metadata: Of the event. ``replay`` is the name of the replay that published it again, if any; ``hops`` as in
            :class:`Event`. It becomes ``traced_by`` if it has a trace context, valid or not, that tasks continue: those
            of a replay begin another trace.
        data: Its JSON, as it is stored and sent; None: it is encoded when it is needed.
        event: The whole event, if it has been decoded.
        fingerprint: Of the bytes that were received, if *data* differs from them.
    """

    __slots__ = (
        *("_data", "_event", "_fingerprint", "_trace_headers", "hides_source", "hops", "id"),
        *("received_bytes", "repaired", "replay", "signer", "traced_by", "type"),
    )

    def __init__(
        self,
        id: str,
        type: str,
        metadata: dict[str, Any] | None,
        data: bytes | None,
        event: Event | None = None,
        fingerprint: str = "",
    ) -> None:
        self.id = id
        self.type = type
        self.replay: str | None = None
        self.hops = 0
        self.traced_by: dict[str, Any] | None = None
        self._trace_headers: tuple[bytes, ...] | None = None
        if metadata:
            self.replay, self.hops = replay_of(metadata), hops_of(metadata)
            if metadata.get(TRACEPARENT) is not None and self.replay is None:
                self.traced_by = metadata
        #: Id of the key that has signed it, if that was verified.
        self.signer = ""
        #: Whether its real source may be in its event key: the broadcast of the TypeScript bus has a marker instead.
        self.hides_source = False
        #: Size of what was received, if its source was hidden or its text repaired.
        self.received_bytes = 0
        #: Whether half a surrogate pair was replaced in it.
        self.repaired = False
        self._data = data
        self._event = event
        self._fingerprint = fingerprint

    @classmethod
    def of(cls, event: Event, data: bytes | None, fingerprint: str = "") -> Self:
        """Return *event* with its JSON, *data*; None: it is encoded when it is needed."""
        return cls(event.id, event.type, event.metadata, data, event, fingerprint)

    @classmethod
    def receive(cls, data: bytes, *, max_bytes: int, channel_type: str | None = None) -> Self:
        """Decode an event that another program sent, see :meth:`Event.receive`. Its fingerprint is that of *data*.

        Raises:
            InvalidEvent: As :meth:`Event.decode`.
        """
        try:
            event, kept, hides_source, repaired = Event.receive(data, max_bytes=max_bytes, channel_type=channel_type)
        except Exception:
            raise
        except BaseException as error:
            _raise_unless_panic(error)
            raise InvalidEvent("json", "", "the parser failed with an internal error") from error
        as_it_came = "" if kept is data else fingerprint(event.type, data)
        received = cls(event.id, event.type, event.metadata, kept, event, as_it_came)
        if hides_source or repaired:
            received.hides_source, received.repaired, received.received_bytes = hides_source, repaired, len(data)
        return received

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read the event of a journal entry. It was validated before it was appended, so a check of its form is enough.

        Any program can write to the journal, so an event in an unusual form is decoded like one from a channel.

        Raises:
            InvalidEvent: It is not a valid event.
        """
        try:
            # Three times as fast as our own decoder, which handles the rest, such as integers beyond 64 bits.
            fields = from_json(data, allow_inf_nan=False)
        except ValueError:
            fields = None
        except BaseException as error:  # noqa: BLE001  # raised again below, unless it is a panic
            _raise_unless_panic(error)
            fields = None
        usual = type(fields) is dict and is_plain(fields) and data.startswith(STORED_START)
        usual = usual and "specversion" not in fields  # as CloudEvents have
        if usual and not wire.is_suspicious(data):
            check_id(fields["id"])
            check_type(fields["type"])
            return cls(fields["id"], fields["type"], fields.get("metadata"), data)
        return cls.receive(data, max_bytes=len(data))

    @property
    def data(self) -> bytes:
        """Its JSON, as it is stored and sent."""
        if self._data is None:
            self._data = self.event.encode()
        return self._data

    @property
    def trace(self) -> TraceContext | None:
        """The trace context that its tasks continue; None if it has none or a malformed one."""
        return trace_context_of(self.traced_by)

    @property
    def trace_headers(self) -> tuple[bytes, ...]:
        """The headers of :attr:`trace`, see :func:`headers_in_json`. Only dispatch needs them."""
        if self._trace_headers is None:
            self._trace_headers = headers_in_json(self.traced_by or {})
        return self._trace_headers

    @property
    def event(self) -> Event:
        """The whole event."""
        if self._event is None:
            self._event = Event.decode(self.data, max_bytes=len(self.data))
        return self._event

    @property
    def fingerprint(self) -> str:
        """Short hash of the channel and of the received bytes. Broadcasts with equal hashes are duplicates."""
        return self._fingerprint or fingerprint(self.type, self.data)

    def __repr__(self) -> str:
        return in_short(self.type, self.id)


def _raise_unless_panic(error: BaseException) -> None:
    """Raise *error*, unless the parser of pydantic panicked.

    A panic is an error in the parser. It is no ``Exception``, and would end the thread that reads the message.
    """
    if type(error).__module__ != "pyo3_runtime":
        raise error


def fingerprint(event_type: str, data: bytes) -> str:
    """Return a short hash of a broadcast: its channel and its bytes."""
    return blake2b(event_type.encode() + b" " + data, digest_size=6).hexdigest()

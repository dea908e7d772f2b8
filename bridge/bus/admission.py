"""The gate that every event passes which this process did not publish: what is let in, and what has to be signed.

Events come in by their channel, by their key, and by the journal, into which other programs may write as well.
Whichever way they take they are decoded here, within the same limits, and what the settings refuse is refused. All
subscribers of a bus should have the same settings: what one of them lets into the journal has taken its id.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from bridge.config import BridgeSettings
from bridge.errors import InvalidEvent
from bridge.events import CLOCK_SKEW_S, SIGNATURE, EncodedEvent, Event, Keyring, compile_pattern, now_ms, wire
from bridge.storage import Entry, stream_position


class _Rules(NamedTuple):
    """What the settings say of one type: why it is *refused*, if so, and whether its events must be *signed*."""

    refused: str
    signed: bool


class Admission:
    """Lets the events of one bus in.

    Arguments:
        settings: ``max_event_bytes``, ``max_event_depth``, ``accepted_types``, ``rejected_types``,
            ``require_signature`` and what goes with it.
    """

    def __init__(self, settings: BridgeSettings) -> None:
        self._max_bytes = settings.max_event_bytes
        #: None: the decoder has the same limit.
        self._max_depth = settings.max_event_depth if settings.max_event_depth < wire.MAX_DEPTH else None
        self._max_age_ms = settings.signature_max_age_ms
        self._keyring = Keyring(settings.signing_keys, settings.channel_prefix)
        self._accept, self._reject, self._require = (
            [compile_pattern(pattern) for pattern in patterns]
            for patterns in (settings.accepted_types, settings.rejected_types, settings.require_signature)
        )
        #: With nothing set, nothing is looked up: 70,000 events a second come by.
        self._open = not (self._accept or self._reject or self._require)
        self._rules_of = lru_cache(maxsize=10_000)(self._rules)  # types are few, events are many

    def receive(self, data: bytes, channel_type: str | None = None) -> EncodedEvent:
        """Decode what another program sent; as :meth:`EncodedEvent.receive`.

        Raises:
            InvalidEvent: It is no event, is ``not_accepted``, or lacks the ``signature`` it must have.
        """
        received = EncodedEvent.receive(data, max_bytes=self._max_bytes, channel_type=channel_type)
        self._check_depth(received.event)
        if not self._open:
            self._admit(received.type, data, now_ms())
        return received

    def read(self, entry: Entry) -> EncodedEvent:
        """Read the event of a journal entry that is there, or of the key that stands in for it.

        A signature counts as of the moment of the entry, or else a backlog would make it old.

        Raises:
            InvalidEvent: As :meth:`receive`.
        """
        data = entry.data or b""
        stored = EncodedEvent.read(data)
        if self._max_depth is not None:
            self._check_depth(stored.event)
        if not self._open:
            at_ms, _ = stream_position(entry.entry_id.decode())
            self._admit(stored.type, data, at_ms, replayed=entry.group is not None)
        return stored

    def look_up(self, event_id: str, data: bytes) -> Event:
        """Decode what the key of this event holds, of any age.

        Raises:
            InvalidEvent: It is no event, or lacks the signature it must have, or is another one.
        """
        event = Event.decode(data, max_bytes=self._max_bytes)
        if self.must_be_signed(event.type):
            self._keyring.verify(data)
            if event.id != event_id:
                raise InvalidEvent(SIGNATURE, "id", f"the key of event {event_id} holds event {event.id}")
        return event

    def check(self, event: Event) -> None:
        """Raise :class:`InvalidEvent` if *event*, which is to be published, would not be let in."""
        self.check_type(event.type)
        self._check_depth(event)

    def check_type(self, event_type: str) -> None:
        """Raise :class:`InvalidEvent` if events of this type are not accepted."""
        if not self._open and (why := self._rules_of(event_type).refused):
            raise InvalidEvent("not_accepted", "type", why)

    def must_be_signed(self, event_type: str) -> bool:
        """Whether events of this type need a signature."""
        return not self._open and self._rules_of(event_type).signed

    def can_be_signed_again(self, event: Event, data: bytes, *, dispatched: bool) -> bool:
        """Whether *event*, encoded in *data*, may be signed anew with the mark of a replay: it is signed already.

        Arguments:
            dispatched: It was let in before, signed if it must be; *data* may spell it in another way now.

        Raises:
            InvalidEvent: It must be signed and is not.
        """
        if not self.must_be_signed(event.type):
            return self._keyring.has_signed(data)
        if not dispatched:
            self._keyring.verify(data)
        return True

    def _admit(self, event_type: str, data: bytes, at_ms: int, *, replayed: bool = False) -> None:
        self.check_type(event_type)
        if self.must_be_signed(event_type):
            self._check_age(self._keyring.verify(data), at_ms, replayed)

    def _check_depth(self, event: Event) -> None:
        if self._max_depth is not None:
            wire.check_containers(event.to_dict(), self._max_depth)

    def _check_age(self, fields: dict[str, Any], at_ms: int, replayed: bool) -> None:
        signed_ms = fields["timestamp"]
        if replayed:  # by us: the event may be old by now
            replay = (fields.get("metadata") or {}).get("replay")
            again_ms = replay.get("signed") if isinstance(replay, dict) else None
            signed_ms = again_ms if type(again_ms) is int else signed_ms
        age_ms = at_ms - signed_ms
        if age_ms > self._max_age_ms:
            text = f"signed {age_ms // 1000} s before it came, bridge_signature_max_age_s is {self._max_age_ms // 1000}"
            raise InvalidEvent(SIGNATURE, "timestamp", text)
        if age_ms < -CLOCK_SKEW_S * 1000:
            text = f"signed {-age_ms // 1000} s after it came: one of the clocks is wrong"
            raise InvalidEvent(SIGNATURE, "timestamp", text)

    def _rules(self, event_type: str) -> _Rules:
        refused = ""
        if self._accept and not any(pattern.fullmatch(event_type) for pattern in self._accept):
            refused = f"{event_type!r} is none of the types in bridge_accepted_types"
        elif any(pattern.fullmatch(event_type) for pattern in self._reject):
            refused = f"{event_type!r} is one of the types in bridge_rejected_types"
        return _Rules(refused, any(pattern.fullmatch(event_type) for pattern in self._require))

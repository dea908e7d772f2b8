"""Admission: which events of other programs are accepted, and which must be signed.

Events arrive on their channel, in their key, and in the journal, to which other programs can write too. All of them are
decoded here, within the same limits, and the settings decide which types are rejected. All subscribers of a bus should
have the same settings: an event that one of them accepts into the journal has taken its id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from bridge.config import BridgeSettings
from bridge.errors import InvalidEvent
from bridge.events import CLOCK_SKEW_S, SIGNATURE, EncodedEvent, Event, Keyring, compile_pattern, now_ms, wire
from bridge.storage import Entry, stream_position


class _Rules(NamedTuple):
    """The settings for one event type: why it is *refused*, empty if it is not, and whether it must be *signed*."""

    refused: str
    signed: bool


class Admission:
    """Decides which events of one bus are accepted.

    Arguments:
        settings: ``max_event_bytes``, ``max_event_depth``, ``max_hops``, ``accepted_types``, ``rejected_types``,
            ``require_signature`` and what goes with it.
    """

    def __init__(self, settings: BridgeSettings) -> None:
        self._max_bytes = settings.max_event_bytes
        #: Of an entry: the mark of a replay, or another encoding of the same values, makes an event longer.
        self._max_stored_bytes = 2 * settings.max_event_bytes
        #: None when the limit of the decoder is enough.
        self._max_depth = settings.max_event_depth if settings.max_event_depth < wire.MAX_DEPTH else None
        self._max_hops = settings.max_hops
        self._max_age_ms = settings.signature_max_age_ms
        self._keyring = Keyring(settings.signing_keys, settings.channel_prefix)
        #: Whether the rate limit counts signed events under their keys.
        self._counts_signers = bool(self._keyring) and settings.max_events_per_s_per_source is not None
        self._accept = _compiled(settings.accepted_types)
        self._reject = _compiled(settings.rejected_types)
        self._require = _compiled(settings.require_signature)
        #: Whether no such setting is used. Then nothing is looked up: 70,000 events a second pass here.
        self._open = not (self._accept or self._reject or self._require)
        self._rules_of = lru_cache(maxsize=10_000)(self._rules)  # types are few, events are many

    def receive(self, data: bytes, channel_type: str | None = None) -> EncodedEvent:
        """Decode an event that another program sent, see :meth:`EncodedEvent.receive`.

        Raises:
            InvalidEvent: It is not valid, its type is ``not_accepted``, or it lacks the required ``signature``.
        """
        received = EncodedEvent.receive(data, max_bytes=self._max_bytes, channel_type=channel_type)
        self._check_depth(received.event)
        if not self._open:
            self._admit(received.type, data, now_ms())
        if self._counts_signers:
            received.signer = self._keyring.signer(data)
        return received

    def read(self, entry: Entry) -> EncodedEvent:
        """Read the event of a journal entry, or of the event key that replaces an entry that was removed.

        The age of a signature is measured at the time of the entry, since a backlog would make it too old. The mark of
        a replay counts only in an entry that is addressed to the group and the handler that the mark names.

        Raises:
            InvalidEvent: As :meth:`receive`. The entry and the mark of the replay disagree (``replay_mismatch``). An
                event that follows from this one would exceed ``max_hops`` (``hop_limit``): a handler must not fail
                when it publishes, after its effect.
        """
        data = entry.data or b""
        if len(data) > self._max_stored_bytes:
            raise InvalidEvent(
                "size", "", f"{len(data)} bytes, the limit is {self._max_bytes} (bridge_max_event_bytes)"
            )
        stored = EncodedEvent.read(data)
        if entry.group is entry.handler is None:
            stored.replay = None  # else a copy of this entry would be another task
        else:
            _check_address(entry, stored.event)
        if stored.hops >= self._max_hops:
            text = f"{stored.hops} publications from the first event of its chain, bridge_max_hops is {self._max_hops}"
            raise InvalidEvent("hop_limit", "metadata.hops", text)
        if self._max_depth is not None:
            self._check_depth(stored.event)
        if not self._open:
            appended_ms, _ = stream_position(entry.entry_id.decode())
            # The id of an entry is not always a time: any publisher can choose it, and so can a clock that was ahead.
            at_ms = min(appended_ms, now_ms())
            self._admit(stored.type, data, at_ms, replayed=entry.group is not None)
        return stored

    def look_up(self, event_id: str, data: bytes) -> Event:
        """Decode the content of the key of this event, whatever its age.

        Raises:
            InvalidEvent: It is not valid, lacks the required signature, or has another id.
        """
        event = Event.decode(data, max_bytes=self._max_bytes)
        if self.must_be_signed(event.type):
            self._keyring.verify(data)
            if event.id != event_id:
                raise InvalidEvent(SIGNATURE, "id", f"the key of event {event_id} holds event {event.id}")
        return event

    def check(self, event: Event) -> None:
        """Raise :class:`InvalidEvent` if *event*, which is to be published, would not be accepted."""
        self.check_type(event.type)
        self._check_depth(event)

    def check_type(self, event_type: str) -> None:
        """Raise :class:`InvalidEvent` if events of this type are not accepted."""
        if not self._open and (why := self._rules_of(event_type).refused):
            raise InvalidEvent("not_accepted", "type", why)

    def must_be_signed(self, event_type: str) -> bool:
        """Return whether events of this type must be signed."""
        return not self._open and self._rules_of(event_type).signed

    def can_be_signed_again(self, event: Event, data: bytes, *, dispatched: bool) -> bool:
        """Return whether *event*, encoded as *data*, may be signed again for a replay, since it is signed already.

        Arguments:
            dispatched: It was accepted before, with a signature if required; *data* may be encoded differently now.

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
        if replayed:  # a replay signs the event again, which may be old by then
            replay = (fields.get("metadata") or {}).get("replay")
            again_ms = replay.get("signed") if isinstance(replay, dict) else None
            signed_ms = again_ms if type(again_ms) is int else signed_ms
        age_ms = at_ms - signed_ms
        if age_ms > self._max_age_ms:
            limit_s = self._max_age_ms // 1000
            text = f"signed {age_ms // 1000} s before it was received, bridge_signature_max_age_s is {limit_s}"
            raise InvalidEvent(SIGNATURE, "timestamp", text)
        if age_ms < -CLOCK_SKEW_S * 1000:
            text = f"signed {-age_ms // 1000} s after it was received: one of the clocks is wrong"
            raise InvalidEvent(SIGNATURE, "timestamp", text)

    def _rules(self, event_type: str) -> _Rules:
        refused = ""
        if self._accept and not any(pattern.fullmatch(event_type) for pattern in self._accept):
            refused = f"{event_type!r} matches no pattern in bridge_accepted_types"
        elif any(pattern.fullmatch(event_type) for pattern in self._reject):
            refused = f"{event_type!r} matches a pattern in bridge_rejected_types"
        return _Rules(refused, any(pattern.fullmatch(event_type) for pattern in self._require))


def _check_address(entry: Entry, event: Event) -> None:
    """Raise :class:`InvalidEvent` unless the address of *entry* is in the mark of the replay, which may be signed."""
    mark = (event.metadata or {}).get("replay")
    mark = mark if isinstance(mark, dict) else {}
    marked = (mark.get("group"), mark.get("handler") or None)
    unnamed = "group" not in mark and entry.group is not None  # by an older version
    if event.replay is None or (marked != (entry.group, entry.handler) and not unnamed):
        addressed = f"group {str(entry.group)[:100]!r} and handler {str(entry.handler)[:100]!r}"
        text = f"the journal entry is addressed to {addressed}, the mark of its replay is not"
        raise InvalidEvent("replay_mismatch", "metadata.replay", text)


def _compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    return [compile_pattern(pattern) for pattern in patterns]

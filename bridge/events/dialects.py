"""What other programs write in place of the wire format, and what it means here.

=======================================  ==============================================================================
``eventId``, ``eventType``,              ``id``, ``type``, ``correlationId``
``correlation_id``
the source ``RedisEventBus``             no source: the TypeScript bus writes this marker in place of the real one
the type ``undefined`` or ``null``       no type: what JavaScript writes for a missing type, also in channels
a CloudEvent (``specversion``, no        an event: ``data`` is the payload, ``time`` the timestamp; the ids of the
``payload``)                             chain and of the trace move to ``correlationId`` and ``metadata``
=======================================  ==============================================================================
"""

from __future__ import annotations

from typing import Any

from bridge.errors import InvalidEvent
from bridge.events.clock import ms_of
from bridge.events.validation import NO_TYPE, SIGNATURE, is_signature

#: The existing TypeScript bus broadcasts every event with this source, and drops every message that has it.
TYPESCRIPT_BUS_SOURCE = "RedisEventBus"

_ALIASES = {"eventId": "id", "eventType": "type", "correlation_id": "correlationId"}
#: Extension attributes of a CloudEvent that belong into the metadata, under these names.
_CLOUDEVENT_METADATA = {"causationid": "causationId", "traceparent": "traceparent", "tracestate": "tracestate"}


def renamed(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event under the names of the wire format."""
    known = dict(fields)  # a null counts as missing, so its alias is used, before and after a round trip
    for alias, name in _ALIASES.items():
        if alias in known and known.get(name) is None:
            known[name] = known.pop(alias)
    return known


def translated(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an event, as any program may have written them, in the wire format.

    Raises:
        InvalidEvent: It is a CloudEvent that cannot be mapped (``cloudevent``).
    """
    known = renamed(fields)
    if known.get("specversion") is not None and known.get("payload") is None:
        _map_cloudevent(known)
    if known.get("source") == TYPESCRIPT_BUS_SOURCE:
        known["source"] = None
    return known


def received(fields: dict[str, Any], channel_type: str | None) -> dict[str, Any]:
    """Return the fields of an event of another program as :func:`translated`, with its id and type.

    Arguments:
        channel_type: The type that the channel names, if it was received on one. Used if the event has no type.

    Raises:
        InvalidEvent: ``no_id``, ``no_type``, or as :func:`translated`.
    """
    known = translated(fields)
    if known.get("id") is None:
        raise InvalidEvent("no_id", "id", "missing")
    if type(known["id"]) is int:
        known["id"] = str(known["id"])
    if known.get("type") is None:
        if channel_type is None:
            raise InvalidEvent("no_type", "type", "missing")
        if channel_type in NO_TYPE:
            text = f"missing, and its channel ends in {channel_type!r}: the type was {channel_type} in JavaScript"
            raise InvalidEvent("no_type", "type", f"{text}; set it where the event is published")
        known["type"] = channel_type
    return known


def names_no_type(channel_type: str, fields: dict[str, Any]) -> bool:
    """Return whether a channel does not name a type, because *fields*, broadcast on it, have none called ``type``."""
    return channel_type in NO_TYPE and fields.get("type") is None


def _map_cloudevent(known: dict[str, Any]) -> None:
    """Map a CloudEvent 1.0 in JSON format. Attributes that the bus has no field for stay, as any unknown field."""
    if known.get("data_base64") is not None:
        text = "a CloudEvent with binary data; store the data elsewhere and send a reference to it in data"
        raise InvalidEvent("cloudevent", "data_base64", text)
    if is_signature(known.get(SIGNATURE)):
        text = "a signed CloudEvent would lose its signature when it is mapped; sign an event in the format of the bus"
        raise InvalidEvent("cloudevent", SIGNATURE, text)
    known["payload"] = known.pop("data", None)
    time = known.pop("time", None)
    if known.get("timestamp") is None and time is not None:
        known["timestamp"] = time if (ms := ms_of(time)) is None else ms
    if known.get("correlationId") is None and "correlationid" in known:
        known["correlationId"] = known.pop("correlationid")
    metadata = known.get("metadata")
    moved = {
        name: known.pop(attribute)
        for attribute, name in _CLOUDEVENT_METADATA.items()
        if known.get(attribute) is not None
    }
    if moved and (metadata is None or isinstance(metadata, dict)):
        known["metadata"] = moved | (metadata or {})

"""Valid values for the fields of an event, for all publishers."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from bridge.errors import InvalidEvent

#: Ids become parts of Redis keys: no glob characters, no spaces, and no braces, which would change the cluster slot.
ID_PATTERN = r"[A-Za-z0-9._:@+-]{1,200}"
_ID = re.compile(ID_PATTERN)
_TYPE = re.compile(r"[A-Za-z0-9_-]+(?:[.:/][A-Za-z0-9_-]+)*")
_MAX_TYPE_LENGTH = 200
#: What JavaScript makes of a missing type, where it is a part of a text such as the name of a channel.
NO_TYPE = frozenset({"undefined", "null"})
#: Field with the signature of an event, see signing.py; also the reason of events that are rejected for it.
SIGNATURE = "signature"
#: Ids of the keys that sign events.
MAX_KEY_ID = 64
KEY_ID_PATTERN = rf"[A-Za-z0-9._-]{{1,{MAX_KEY_ID}}}"
_SIGNATURE = re.compile(rf"{KEY_ID_PATTERN}:[0-9a-f]{{64}}")


def in_short(event_type: str, event_id: str) -> str:
    """Return an event as logs, Flower and task lists show it: without its payload, which may be secret."""
    return f"<Event {event_type} {event_id}>"


def replay_of(metadata: dict[str, Any] | None) -> str | None:
    """Return the name of the replay in the metadata of an event, if any."""
    replay = metadata.get("replay") if metadata else None
    name = replay.get("name") if isinstance(replay, dict) else None
    return name if isinstance(name, str) else None


def hops_of(metadata: dict[str, Any] | None) -> int:
    """Return the number of hops in the metadata of an event; 0 if there is no valid number."""
    hops = metadata.get("hops") if metadata else None
    return hops if type(hops) is int and hops > 0 else 0


def is_signature(value: Any) -> bool:
    """Return whether *value* has the form of a signature, see signing.py. Other programs may use the name otherwise."""
    return isinstance(value, str) and _SIGNATURE.fullmatch(value) is not None


def is_plain(fields: dict[str, Any]) -> bool:
    """Return whether the fields of a decoded event have types that need no conversion, as in nearly all events."""
    get = fields.get
    metadata, source, correlation_id = get("metadata"), get("source"), get("correlationId")
    return (
        type(get("id")) is type(get("type")) is str
        and type(get("timestamp")) is int
        and (metadata is None or type(metadata) is dict)
        and (source is None or type(source) is str)
        and (correlation_id is None or type(correlation_id) is str)
    )


def check_id(event_id: str) -> None:
    """Raise :class:`InvalidEvent` unless *event_id* is valid."""
    if not _ID.fullmatch(event_id):
        raise InvalidEvent("id", "id", f"{event_id[:80]!r} is not 1 to 200 of A-Z a-z 0-9 . _ : @ + -")


@lru_cache(maxsize=10_000)  # types are few, events are many
def check_type(event_type: str) -> None:
    """Raise :class:`InvalidEvent` unless *event_type* is valid."""
    if event_type in NO_TYPE:
        text = f"{event_type!r} is what JavaScript writes for a missing type; set it where the event is published"
        raise InvalidEvent("no_type", "type", text)
    if len(event_type) > _MAX_TYPE_LENGTH or not _TYPE.fullmatch(event_type):
        raise InvalidEvent("type", "type", f"{event_type[:80]!r} is not words of A-Z a-z 0-9 _ - joined by . : /")

"""Dead letters: what could not be processed, kept with the reason instead of being lost or tried for ever."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from redis import Redis

from bridge.connection import script
from bridge.event import Event
from bridge.keys import Keys
from bridge.settings import BridgeSettings

#: Bytes of a message that did not decode which are kept; enough to recognise it, too few to fill the server.
_RAW_BYTES = 4096
#: Within this time the same failure is written once, however many subscribers meet it.
_MARK_TTL_MS = 300_000


@dataclass(frozen=True)
class DeadLetter:
    """One failure.

    Arguments:
        reason: Stable short name, e.g. ``json``, ``type_mismatch``, ``payload``, ``failure``.
        detail: What went wrong, for a person.
        origin: Where it came from: a channel, a key, or ``journal``.
        raw: The message; of one that did not decode, the first 4 kB.
        size: Full size of the message, bytes.
        event_id, event_type: Of the event, when it decoded.
        handler, task_id: Of the Celery task, when it got that far.
        at_ms: When it was written, ms since the epoch.
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

    @classmethod
    def of_message(cls, reason: str, detail: str, origin: str, data: bytes) -> DeadLetter:
        """A message that is no event."""
        return cls(reason, detail, origin, data[:_RAW_BYTES], size=len(data))

    @classmethod
    def of_event(
        cls, reason: str, detail: str, event: Event, data: bytes, handler: str, task_id: str, **more: Any
    ) -> DeadLetter:
        """An event that *handler* cannot process."""
        return cls(reason, detail, "journal", data, len(data), event.id, event.type, handler, task_id, **more)

    @property
    def mark(self) -> str:
        """What makes two letters the same failure."""
        what = (self.reason, self.origin, self.task_id or self.raw)
        return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()


class DeadLetters:
    """The dead letters of one group, capped by count.

    Arguments:
        client: Connected to the bus.
        settings: Prefix, group and ``max_dead_letters``.
    """

    def __init__(self, client: Redis, settings: BridgeSettings) -> None:
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.channel_prefix)
        self._park = script(client, "park")

    def add(self, letter: DeadLetter, pipe: Any = None) -> bool:
        """Write *letter*; False when the same failure was written moments ago. Safe to repeat."""
        fields: dict[str, Any] = vars(letter) | {"at_ms": time.time_ns() // 1_000_000}
        flat = [part for name, value in fields.items() for part in (name, value)]
        group = self._settings.group
        keys = [self._keys.dead(group), self._keys.parked(group, letter.mark)]
        return bool(self._park(keys=keys, args=[_MARK_TTL_MS, self._settings.max_dead_letters, *flat], client=pipe))

    def latest(self, count: int) -> list[DeadLetter]:
        """Return up to *count* letters, newest first."""
        rows: Any = self._client.xrevrange(self._keys.dead(self._settings.group), count=count)
        return [_letter(fields) for _, fields in rows]


def _letter(fields: dict[bytes, bytes]) -> DeadLetter:
    texts: dict[str, Any] = {name.decode(): value.decode() for name, value in fields.items() if name != b"raw"}
    numbers = {name: int(texts[name]) for name in ("size", "at_ms", "attempts")}
    return DeadLetter(raw=fields[b"raw"], **texts | numbers)

"""Dead letters: what could not be processed, kept with the reason instead of being lost or tried for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from redis import Redis

from bridge import letter_fields, wire
from bridge.connection import attempt, entries_by_id, script
from bridge.errors import EventInvalid
from bridge.event import Event
from bridge.keys import Keys
from bridge.ledger import Ended
from bridge.redaction import Redaction
from bridge.selection import Selection
from bridge.settings import BridgeSettings
from bridge.stored import StoredEvent

#: Bytes of a message that did not decode which are kept; enough to recognise it, too few to fill the server.
_RAW_BYTES = 4096
#: Within this time the same failure is written once, however many subscribers meet it.
_MARK_TTL_MS = 300_000
#: Likewise of messages, which strangers may send without end: each mark takes memory.
_MESSAGE_MARK_TTL_MS = 60_000
#: Letters read in one round trip; each may have a whole event.
_PAGE = 100
#: Reasons for which a whole event is not taken at its word, with the field and what is wrong with it.
_NOT_THAT_EVENT = {
    "type_mismatch": ("type", "it came on the channel of another type"),
    "id_conflict": ("id", "another event has this id; publish it anew under an id of its own"),
    "signature": ("signature", "it is not signed as bridge_require_signature demands; its publisher has to sign it"),
    "loop": ("metadata.hops", "its chain is longer than bridge_max_hops; publish it anew to begin another"),
}


@dataclass(frozen=True)
class DeadLetter:
    """One failure.

    Arguments:
        reason: Stable short name, e.g. ``json``, ``type_mismatch``, ``payload``, ``failure``.
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
        cls, reason: str, detail: str, event: Event | StoredEvent, data: bytes, handler: str, task_id: str, **more: Any
    ) -> DeadLetter:
        """An event that *handler* cannot process."""
        more = {"sha256": _sha256(data)} | more
        return cls(reason, detail, "journal", data, len(data), event.id, event.type, handler, task_id, **more)

    def event(self) -> Event:
        """Return the event it holds.

        Raises:
            EventInvalid: It holds none, or only parts of one.
        """
        if self.redacted:
            raise EventInvalid("redacted", "", "what bridge_sensitive names was left out")
        if len(self.raw) < self.size:
            raise EventInvalid("size", "", f"only {len(self.raw)} of {self.size} bytes were kept")
        if self.reason in _NOT_THAT_EVENT:
            raise EventInvalid(self.reason, *_NOT_THAT_EVENT[self.reason])
        return Event.decode(self.raw, max_bytes=len(self.raw))

    @property
    def stands_for(self) -> Event | None:
        """The event that it is about, without the parts that were left out; None when it has it whole, or none."""
        if not self.redacted or self.reason in _NOT_THAT_EVENT:
            return None
        return self._decoded()

    def _decoded(self) -> Event | None:
        try:
            return Event.decode(self.raw, max_bytes=len(self.raw))
        except EventInvalid:
            return None

    def shown(self, redaction: Redaction) -> DeadLetter:
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


@dataclass(frozen=True)
class Size:
    """How much the dead letters of a group are: *bytes* of what they hold, *dropped* to make room since ever."""

    letters: int
    bytes: int
    dropped: int


class DeadLetters:
    """The dead letters of one group, capped by count and by bytes.

    Arguments:
        client: Connected to the bus.
        settings: Prefix, group, ``max_dead_letters`` and ``max_dead_letter_bytes``.
    """

    def __init__(self, client: Redis, settings: BridgeSettings) -> None:
        self._client = client
        self._settings = settings
        keys = Keys(settings.channel_prefix)
        self._key, self._size_key = keys.dead(settings.group), keys.dead_size(settings.group)
        self._keys = keys
        self._park = script(client, "park")
        self._drop = script(client, "drop")

    def add(self, letter: DeadLetter) -> bool:
        """Write *letter*; False when the same failure was written moments ago. Safe to repeat."""
        return bool(self._park(keys=self._letter_keys(letter), args=self._arguments(letter, _MARK_TTL_MS)))

    def add_many(self, letters: Sequence[DeadLetter], *, remember: bool = False) -> list[bool]:
        """Write *letters* in one round trip, and return for each what :meth:`add` would. Safe to repeat.

        Arguments:
            remember: Not for moments, but for as long as events are: of what is met again after every gap.
        """
        mark_ttl_ms = self._settings.dedup_ttl_ms if remember else _MESSAGE_MARK_TTL_MS
        with self._client.pipeline(transaction=False) as pipe:
            for letter in letters:
                self._park(keys=self._letter_keys(letter), args=self._arguments(letter, mark_ttl_ms), client=pipe)
            return [bool(written) for written in pipe.execute()]

    def shown(self, letter: DeadLetter) -> DeadLetter:
        """Return *letter* without what ``sensitive`` names, as it is written: it outlives the event."""
        return letter.shown(self._settings.redaction)

    def bury(self, letter: DeadLetter, ended: Ended | None) -> bool:
        """Write *letter* and take its task out of the ledger in one step; False as :meth:`add`. Safe to repeat.

        Arguments:
            ended: How the task has ended with that. None: not at all, it runs if its message comes after all.
        """
        group, task_id = self._settings.group, letter.task_id
        task_keys = [self._keys.done(task_id), self._keys.lease(task_id)]
        task_keys += [self._keys.inflight(group), self._keys.inflight_pairs(group)]
        keys, args = self._letter_keys(letter) + task_keys, self._arguments(letter, _MARK_TTL_MS, ended)
        return bool(self._park(keys=keys, args=args))

    def _letter_keys(self, letter: DeadLetter) -> list[str]:
        return [self._key, self._size_key, self._keys.parked(self._settings.group, letter.mark)]

    def _arguments(self, letter: DeadLetter, mark_ttl_ms: int, ended: Ended | None = None) -> list[Any]:
        limits = (self._settings.max_dead_letters, self._settings.max_dead_letter_bytes)
        done = (self._settings.dedup_ttl_ms, ended.encode()) if ended else (0, "")
        return [mark_ttl_ms, *limits, letter.task_id, *done, *_written(self.shown(letter))]

    def latest(self, count: int) -> list[DeadLetter]:
        """Return up to *count* letters, newest first."""
        rows: Any = self._client.xrevrange(self._key, count=count)
        return [_letter(*row) for row in rows]

    def by_id(self, letter_ids: Sequence[str]) -> dict[str, DeadLetter]:
        """Return those of the letters that are there, by id; one round trip.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        what = "reading dead letters"
        found = attempt(self._settings, what, lambda: entries_by_id(self._client, self._key, letter_ids))
        return {letter_id: _letter(letter_id.encode(), stored) for letter_id, stored in found.items()}

    def select(
        self, selection: Selection, *, between: tuple[str, str] | None = None, newest_first: bool = False
    ) -> Iterator[DeadLetter]:
        """Yield the letters of *selection*, read in pages while they are asked for.

        Arguments:
            between: First and last stream id as XRANGE takes them, instead of the times of *selection*.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        first, last = selection.bounds if between is None else between
        while rows := self._page(first, last, newest_first):
            for letter in (_letter(*row) for row in rows):
                ids = (letter.event_id, letter.letter_id)
                if selection.holds_letter(letter.reason, letter.handler, letter.event_type, *ids):
                    yield letter
            if newest_first:
                last = f"({rows[-1][0].decode()}"
            else:
                first = f"({rows[-1][0].decode()}"

    def _page(self, first: str, last: str, newest_first: bool) -> Any:
        def read() -> Any:
            if newest_first:
                return self._client.xrevrange(self._key, max=last, min=first, count=_PAGE)
            return self._client.xrange(self._key, min=first, max=last, count=_PAGE)

        return attempt(self._settings, "reading dead letters", read)

    def drop(self, letter_ids: Sequence[str]) -> int:
        """Remove letters for good; return how many were there.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        ids = list(letter_ids)
        keys = [self._key, self._size_key]
        return int(attempt(self._settings, "dropping dead letters", lambda: self._drop(keys=keys, args=ids)))

    def size(self) -> Size:
        """Return how much there is."""
        with self._client.pipeline(transaction=False) as pipe:  # a full Redis takes no transaction at all
            pipe.xlen(self._key)
            pipe.hmget(self._size_key, ["bytes", "dropped"])
            letters, (held, dropped) = pipe.execute()
        return Size(letters, int(held or 0), int(dropped or 0))


def _written(letter: DeadLetter) -> list[Any]:
    return letter_fields.written(
        {
            name: value
            for name, value in vars(letter).items()
            if name != "letter_id"
            and (name != "redacted" or value)  # where nothing is sensitive nothing else is stored
        }
    )


def _letter(letter_id: bytes, stored: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(**letter_fields.read(stored, _KINDS) | {"letter_id": letter_id.decode()})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

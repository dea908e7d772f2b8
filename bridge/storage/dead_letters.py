"""Dead letters: what could not be processed, kept with the reason instead of being lost or tried for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from bridge.config import BridgeSettings
from bridge.redis import attempt
from bridge.storage.dead_letter import DeadLetter, _letter, _written
from bridge.storage.entries import EntryFilter, entries_by_id
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ended
from bridge.storage.lua import script

#: Within this time the same failure is written once, however many subscribers meet it.
_MARK_TTL_MS = 300_000
#: Likewise of messages, which strangers may send without end: each mark takes memory.
_MESSAGE_MARK_TTL_MS = 60_000
#: Letters read in one round trip; each may have a whole event.
_PAGE = 100


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
        settings: Group, ``max_dead_letters`` and ``max_dead_letter_bytes``.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, settings: BridgeSettings, keys: Keys) -> None:
        self._client = client
        self._settings = settings
        self._key, self._size_key = keys.dead(settings.group), keys.dead_size(settings.group)
        self._keys = keys
        self._write = script(client, "write_dead_letter")
        self._drop = script(client, "drop")

    def add(self, letter: DeadLetter) -> bool:
        """Write *letter*; False when the same failure was written moments ago. Safe to repeat."""
        return bool(self._write(keys=self._letter_keys(letter), args=self._arguments(letter, _MARK_TTL_MS)))

    def add_many(self, letters: Sequence[DeadLetter], *, remember: bool = False) -> list[bool]:
        """Write *letters* in one round trip, and return for each what :meth:`add` would. Safe to repeat.

        Arguments:
            remember: Not for moments, but for as long as events are: of what is met again after every gap.
        """
        mark_ttl_ms = self._settings.dedup_ttl_ms if remember else _MESSAGE_MARK_TTL_MS
        with self._client.pipeline(transaction=False) as pipe:
            for letter in letters:
                self._write(keys=self._letter_keys(letter), args=self._arguments(letter, mark_ttl_ms), client=pipe)
            return [bool(written) for written in pipe.execute()]

    def redacted_by(self, letter: DeadLetter) -> DeadLetter:
        """Return *letter* without what ``redact_paths`` names, as it is written: it outlives the event."""
        return letter.redacted_by(self._settings.redaction)

    def bury(self, letter: DeadLetter, ended: Ended | None) -> bool:
        """Write *letter* and take its task out of the ledger in one step; False as :meth:`add`. Safe to repeat.

        Arguments:
            ended: How the task has ended with that. None: not at all, it runs if its message comes after all.
        """
        group, task_id = self._settings.group, letter.task_id
        task_keys = [self._keys.done(task_id), self._keys.lease(task_id)]
        task_keys += [self._keys.inflight(group), self._keys.inflight_pairs(group)]
        keys, args = self._letter_keys(letter) + task_keys, self._arguments(letter, _MARK_TTL_MS, ended)
        return bool(self._write(keys=keys, args=args))

    def _letter_keys(self, letter: DeadLetter) -> list[str]:
        return [self._key, self._size_key, self._keys.dead_letter_dedup(self._settings.group, letter.mark)]

    def _arguments(self, letter: DeadLetter, mark_ttl_ms: int, ended: Ended | None = None) -> list[Any]:
        limits = (self._settings.max_dead_letters, self._settings.max_dead_letter_bytes)
        done = (self._settings.dedup_ttl_ms, ended.encode()) if ended else (0, "")
        return [mark_ttl_ms, *limits, letter.task_id, *done, *_written(self.redacted_by(letter))]

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
        self, selection: EntryFilter, *, between: tuple[str, str] | None = None, newest_first: bool = False
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
                if selection.matches_dead_letter(letter.reason, letter.handler, letter.event_type, *ids):
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

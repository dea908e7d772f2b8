"""Dead letters: what could not be processed is kept with the reason, neither lost nor retried forever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from bridge.config import BridgeSettings
from bridge.redis import attempt
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.entries import EntryFilter, entries_by_id
from bridge.storage.in_flight import Ended
from bridge.storage.keys import Keys
from bridge.storage.lua import script

#: Within this time the same failure is written once, however many subscribers detect it.
_DEDUP_TTL_MS = 300_000
#: The same for messages that are not events. Any client may send any number of them, and each mark takes memory.
_MESSAGE_DEDUP_TTL_MS = 60_000
#: Dead letters read in one round trip; each may hold a whole event.
_PAGE = 100


@dataclass(frozen=True)
class Size:
    """How many dead letters a group has, how many *bytes* they hold, how many were evicted in total (*dropped*)."""

    count: int
    bytes: int
    dropped: int


class DeadLetters:
    """The dead letters of one group, limited by number and by bytes: the oldest are evicted.

    Arguments:
        client: Connected to the bus.
        settings: Group, ``max_dead_letters``, ``max_dead_letter_bytes`` and what is redacted.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, settings: BridgeSettings, keys: Keys) -> None:
        self._client = client
        self._settings = settings
        self._keys = keys
        self._key, self._size_key = keys.dead(settings.group), keys.dead_size(settings.group)
        self._write = script(client, "write_dead_letter")
        self._drop = script(client, "drop")

    def add(self, dead_letter: DeadLetter) -> bool:
        """Write a dead letter; return False when the same failure was written recently. Safe to repeat."""
        return bool(self._write(keys=self._keys_of(dead_letter), args=self._arguments(dead_letter, _DEDUP_TTL_MS)))

    def add_many(self, dead_letters: Sequence[DeadLetter], *, remember: bool = False) -> list[bool | ResponseError]:
        """Write dead letters in one round trip; return for each what :meth:`add` would, or its error. Safe to repeat.

        Arguments:
            remember: Write the same failure once within ``dedup_ttl_s``, not within a minute: for what every catch-up
                scan finds again.
        """
        dedup_ttl_ms = self._settings.dedup_ttl_ms if remember else _MESSAGE_DEDUP_TTL_MS
        with self._client.pipeline(transaction=False) as pipe:
            for one in dead_letters:
                self._write(keys=self._keys_of(one), args=self._arguments(one, dedup_ttl_ms), client=pipe)
            results = pipe.execute(raise_on_error=False)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ResponseError):
                raise result  # the whole server is unavailable, such as while it loads its data
        return [result if isinstance(result, ResponseError) else bool(result) for result in results]

    def end_task_with(self, dead_letter: DeadLetter, ended: Ended | None) -> bool:
        """Write a dead letter and change the state of its task in one step; return as :meth:`add`. Safe to repeat.

        Arguments:
            ended: How the task ended; it leaves the ledger. None: it is given up, unless it has ended or runs
                meanwhile; if its message arrives after all, it runs, and the dead letter is withdrawn.
        """
        group, task_id = self._settings.group, dead_letter.task_id
        keys = self._keys_of(dead_letter)
        keys += [self._keys.done(task_id), self._keys.lease(task_id)]
        keys += [self._keys.inflight(group), self._keys.inflight_tasks(group)]
        return bool(self._write(keys=keys, args=self._arguments(dead_letter, _DEDUP_TTL_MS, ended)))

    def _keys_of(self, dead_letter: DeadLetter) -> list[str]:
        dedup = self._keys.dead_letter_dedup(self._settings.group, dead_letter.failure_hash)
        return [self._key, self._size_key, dedup]

    def _arguments(self, dead_letter: DeadLetter, dedup_ttl_ms: int, ended: Ended | None = None) -> list[Any]:
        limits = (self._settings.max_dead_letters, self._settings.max_dead_letter_bytes)
        done = (self._settings.dedup_ttl_ms, ended.encode() if ended else "")
        redacted = dead_letter.redacted_by(self._settings.redaction)  # it outlives the event
        return [dedup_ttl_ms, *limits, dead_letter.task_id, *done, *redacted.encode()]

    def latest(self, count: int) -> list[DeadLetter]:
        """Return up to *count* dead letters, the newest first."""
        rows: Any = self._client.xrevrange(self._key, count=count)
        return [DeadLetter.decode(*row) for row in rows]

    def by_id(self, dead_letter_ids: Sequence[str]) -> dict[str, DeadLetter]:
        """Return the dead letters with these ids that exist, by id; one round trip.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        what = "reading dead letters"
        found = attempt(self._settings, what, lambda: entries_by_id(self._client, self._key, dead_letter_ids))
        return {one: DeadLetter.decode(one.encode(), fields) for one, fields in found.items()}

    def select(
        self, selection: EntryFilter, *, between: tuple[str, str] | None = None, newest_first: bool = False
    ) -> Iterator[DeadLetter]:
        """Yield the dead letters that match; they are read in pages, on demand.

        Arguments:
            between: First and last stream id, in the form of XRANGE, instead of the times of *selection*.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        first, last = selection.bounds if between is None else between
        while rows := self._page(first, last, newest_first):
            for row in rows:
                one = DeadLetter.decode(*row)
                ids = (one.event_id, one.dead_letter_id)
                if selection.matches_dead_letter(one.reason, one.handler, one.event_type, *ids):
                    yield one
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

    def drop(self, dead_letter_ids: Sequence[str]) -> int:
        """Delete dead letters permanently; return how many existed.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        ids = list(dead_letter_ids)
        keys = [self._key, self._size_key]
        return int(attempt(self._settings, "deleting dead letters", lambda: self._drop(keys=keys, args=ids)))

    def size(self) -> Size:
        """Return number and size of the dead letters."""
        with self._client.pipeline(transaction=False) as pipe:  # a full Redis rejects every transaction
            pipe.xlen(self._key)
            pipe.hmget(self._size_key, ["bytes", "dropped"])
            count, (held, dropped) = pipe.execute()
        return Size(count, int(held or 0), int(dropped or 0))

"""The journal: a Redis stream that holds every event once. Consumer groups read it, see ``journal_consumer.py``.

Pub/sub drops events that no subscriber receives; in the journal they stay. It gives order, a backlog that survives
crashes, one copy per group however many subscribers run, redelivery of what a dead subscriber held, and replay.

The methods raise redis-py's errors as they come: the loops that call them decide how to wait.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

from redis import Redis
from redis.exceptions import ResponseError

from bridge.config import BATCH_BYTES, BridgeSettings
from bridge.errors import JournalLost, NotReplicated
from bridge.events import EncodedEvent, fingerprint
from bridge.redis import drop_idle_connections
from bridge.storage.entries import Entry, Trimmed, entries_by_id, stream_position
from bridge.storage.event_keys import EventKeys
from bridge.storage.keys import Keys
from bridge.storage.lua import ProvidedScript, script

#: End of the mark of an event that was refused because of its source's rate, see ``append.lua``.
_LIMITED = b":limited"
#: End of the mark of any other event.
_MARKED_ENTRY = re.compile(rb":(\d{1,20}-\d{1,20})\Z")
#: Most events that are indexed under one cause or chain, see ``index_consequence.lua``.
MAX_INDEXED = 1000
#: Time over which the rate of a source is measured.
RATE_WINDOW_S = 10

AppendResult = Literal["appended", "repeated", "conflict", "limited"]
_RESULTS: dict[int, AppendResult] = {1: "appended", 0: "repeated", -1: "conflict", -2: "limited"}


class Mark(NamedTuple):
    """What is remembered of an event: its digest, and its journal entry, which may have been removed.

    An event that was refused because of its source's rate has no entry: its *entry_id* is empty.
    """

    digest: str
    entry_id: str

    @classmethod
    def of(cls, mark: bytes) -> Mark:
        """Return the content of a key ``seen``, see :meth:`Keys.seen`."""
        entry = _MARKED_ENTRY.search(mark)
        return cls(mark.partition(b":")[0].decode(errors="replace"), entry[1].decode() if entry else "")


class Journal:
    """The journal of one bus: what is appended to it, and what it holds. No consumer group is needed for that.

    Arguments:
        client: Connected to the bus.
        settings: Lifetimes, rate limit and replicas.
        keys, event_keys: Of the same bus.
    """

    def __init__(self, client: Redis, settings: BridgeSettings, keys: Keys, event_keys: EventKeys) -> None:
        self._client = client
        self._settings = settings
        self._keys = keys
        self._key = keys.journal
        self._event_keys = event_keys
        self._publish = ProvidedScript(client, "publish")
        self._append = script(client, "append")
        self._trim = script(client, "trim")

    def publish(
        self, events: Sequence[EncodedEvent], attempts: Sequence[str], *, broadcast: bool
    ) -> list[AppendResult]:
        """Write event key, journal entry and broadcast of each event in one step; one round trip for all.

        In a cluster the event keys are on other servers, so they are written first. When the publisher dies in between,
        a catch-up scan finds the keys of events that are not in the journal.

        Arguments:
            events: The events.
            attempts: One token per event, the same when the call is repeated after an error. It distinguishes a
                repetition of this publication from another one with the same id.
            broadcast: Whether to PUBLISH.

        Returns:
            The result for each event, as :meth:`append`; nothing is written unless it is ``appended``.

        Raises:
            NotReplicated: The events are written, but not on ``wait_replicas`` replicas.
        """
        new = self._event_keys.add(events) if self._event_keys.on_other_servers else ()
        results, replicas = self._publish.loaded(lambda: self._publish_all(events, attempts, broadcast))
        if new:
            rows = list(zip(events, results, new, strict=True))
            # The key belongs to the event that came first, as it does where one script writes both.
            self._event_keys.remove([one.id for one, result, is_new in rows if result == "conflict" and is_new])
            self._event_keys.replace([one for one, result, is_new in rows if result == "appended" and not is_new])
        if replicas < self._settings.wait_replicas:
            # A server that has lost its replicas may have been demoted without noticing it.
            drop_idle_connections(self._client)
            raise NotReplicated(replicas, self._settings.wait_replicas)
        return results

    def _publish_all(
        self, events: Sequence[EncodedEvent], attempts: Sequence[str], broadcast: bool
    ) -> tuple[list[AppendResult], int]:
        """Return the result for each event, and how many replicas have them if ``wait_replicas`` is set."""
        wanted = self._settings.wait_replicas
        if len(events) == 1 and not wanted:
            return [_RESULTS[self._publish_one(events[0], attempts[0], broadcast, self._client)]], 0
        with self._client.pipeline(transaction=False) as pipe:
            for event, attempt in zip(events, attempts, strict=True):
                self._publish_one(event, attempt, broadcast, pipe)
            if wanted:
                pipe.wait(wanted, self._settings.wait_replicas_ms)
            replies = pipe.execute()
        replicas = replies.pop() if wanted else 0
        return [_RESULTS[reply] for reply in replies], replicas

    def _publish_one(self, encoded: EncodedEvent, attempt: str, broadcast: bool, client: Redis) -> Any:
        event = encoded.event
        channel = self._keys.channel(event.type) if broadcast else ""
        ttls = (self._settings.dedup_ttl_ms, self._settings.event_ttl_ms)
        keys = [self._key, self._keys.seen(event.id)]
        event_key = consequences = 0
        on_other_servers = self._event_keys.on_other_servers
        if not on_other_servers:
            keys.append(self._keys.event(event.id))
            event_key = len(keys)
        if (cause := event.follows) is not None:
            keys.append(self._keys.consequences(cause))
            consequences = len(keys)
        touch = on_other_servers or self._settings.wait_replicas > 0
        args: list[Any] = [event.digest, encoded.fingerprint + attempt, *ttls, event.id, event.type, encoded.data]
        args += (channel, event_key, consequences, int(touch))
        return self._publish.call(client, keys, args)

    def append(
        self, events: Sequence[EncodedEvent], *, refill: bool = False, limit: bool = False
    ) -> list[AppendResult]:
        """Append each event whose id is new, in one call; safe to repeat.

        Arguments:
            events: The events.
            refill: Whether to append again what is no longer in the journal, after its deletion. Then nothing is a
                ``conflict``.
            limit: Whether ``max_events_per_s_per_source`` applies to them. One count serves all subscribers of all
                groups.

        Returns:
            The result for each event. ``conflict``: its id belongs to an event of another type or payload, which stays.
            ``limited``: its source, or its key if it is signed, had sent too many events before it; so is every
            repetition of it. A signed event is no repetition of an unsigned one that was limited.
        """
        max_rate = self._settings.max_events_per_s_per_source if limit else None
        max_events = max(1, round((max_rate or 0) * RATE_WINDOW_S))
        args: list[Any] = [self._settings.dedup_ttl_ms, self._settings.event_ttl_ms, int(refill)]
        args += (max_events, RATE_WINDOW_S * 1000)
        keys = [self._key, self._keys.group_settings, *(self._keys.seen(one.id) for one in events)]
        for one in events:
            event, consequences, rate = one.event, 0, 0
            if (cause := event.follows) is not None:
                keys.append(self._keys.consequences(cause))
                consequences = len(keys)
            if max_rate is not None:
                keys.append(self._keys.rate(event.source or "", one.signer))
                rate = len(keys)
            args += (event.digest, one.fingerprint, event.id, event.type, one.data, consequences, rate, one.signer)
        replies = cast("list[int]", self._append(keys=keys, args=args))
        return [_RESULTS[reply] for reply in replies]

    def unseen(self, event_ids: Sequence[str]) -> list[str]:
        """Return the ids that have no mark: their events are not in the journal, as far as Redis remembers."""
        with self._client.pipeline(transaction=False) as pipe:
            for event_id in event_ids:
                pipe.exists(self._keys.seen(event_id))
            marks = pipe.execute()
        return [event_id for event_id, mark in zip(event_ids, marks, strict=True) if not mark]

    def missing(self, event_ids: Sequence[str], since: str) -> list[str]:
        """Return the ids that have no mark, or one of an entry from *since* on: the entry may have been removed.

        An event that was refused because of its source's rate has no entry.
        """
        if not event_ids:
            return []
        marks = cast("list[bytes | None]", self._client.mget([self._keys.seen(event_id) for event_id in event_ids]))
        first = stream_position(since)
        found = []
        for event_id, mark in zip(event_ids, marks, strict=True):
            entry = _MARKED_ENTRY.search(mark) if mark is not None else None
            if mark is None or (entry is not None and stream_position(entry[1].decode()) >= first):
                found.append(event_id)
        return found

    def marks(self, event_ids: Sequence[str]) -> dict[str, Mark]:
        """Return what Redis remembers of the events that the journal took under these ids."""
        if not event_ids:
            return {}
        marks = cast("list[bytes | None]", self._client.mget([self._keys.seen(event_id) for event_id in event_ids]))
        return {event_id: Mark.of(mark) for event_id, mark in zip(event_ids, marks, strict=True) if mark}

    def known(self, broadcasts: Sequence[tuple[str, str, bytes]]) -> list[bool]:
        """Return for each broadcast, given by event id, type and data, whether exactly that event is in the journal.

        A broadcast that was refused because of its source's rate is not known: each group keeps its own dead letter.
        """
        marks = cast("list[bytes | None]", self._client.mget([self._keys.seen(one[0]) for one in broadcasts]))
        return [
            mark is not None
            and mark.partition(b":")[2].startswith(fingerprint(event_type, data).encode())
            and not mark.endswith(_LIMITED)
            for mark, (_, event_type, data) in zip(marks, broadcasts, strict=True)
        ]

    def groups(self) -> dict[str, int]:
        """Return the consumer groups, each with its number of pending entries; none when the journal does not exist."""
        try:
            with group_errors():
                rows: Any = self._client.xinfo_groups(self._key)
        except JournalLost:
            return {}
        return {row["name"].decode(errors="backslashreplace"): row["pending"] for row in rows}

    def entries(self, entry_ids: Sequence[str]) -> dict[str, Entry]:
        """Return the entries that are still retained, by id."""
        found = entries_by_id(self._client, self._key, entry_ids)
        return {entry_id: Entry.of(entry_id.encode(), fields) for entry_id, fields in found.items()}

    def trim(self, max_entries: int = 1000) -> Trimmed:
        """Remove entries that are older than the longest ``event_ttl_s`` of all groups; call again while ``more``.

        Arguments:
            max_entries: Most entries to remove, approximately.
        """
        args: list[Any] = [self._settings.event_ttl_ms, max_entries, BATCH_BYTES]
        keys = [self._key, self._keys.group_settings, self._keys.journal_start]
        removed, more, cut, *lost = cast("list[Any]", self._trim(keys=keys, args=args))
        counts = {group.decode(): count for group, count in zip(lost[::2], lost[1::2], strict=True) if count}
        return Trimmed(removed=removed, more=bool(more), lost=counts, cut=cut.decode())


def new_attempt() -> str:
    """Return a token for one publication, see :meth:`Journal.publish`."""
    return secrets.token_hex(6)


@contextmanager
def group_errors() -> Iterator[None]:
    """Raise :class:`JournalLost` where Redis reports that the group or the journal does not exist."""
    try:
        yield
    except ResponseError as error:
        text = str(error)
        # The first two are of reading, the others of XINFO and XGROUP. A failover may also end a read with UNBLOCKED.
        lost = ("NOGROUP", "UNBLOCKED the stream key no longer exists")
        if text.startswith(lost) or "no such key" in text or "requires the key to exist" in text:
            raise JournalLost(text) from error
        raise

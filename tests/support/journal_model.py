"""A model of the journal in plain Python: its entries, their consumers and the result of each entry."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from bridge import BridgeSettings, Event
from bridge.events.encoded import EncodedEvent
from bridge.redis.client import connect
from bridge.storage.journal import AppendResult
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.models import RepeatingMachine, repeatable

TTL_S = 3600
FIRST = (0, 0)

IDS = ["e1", "e2", "e3"]
GROUPS = ["one", "two"]

ids = st.sampled_from(IDS)
#: Event id, payload and publication attempt of each event.
batches = st.lists(st.tuples(ids, st.sampled_from("xy"), st.sampled_from("pq")), min_size=1, max_size=3)
groups = st.sampled_from(GROUPS)

EntryId = tuple[int, int]
Batch = list[tuple[str, str, str]]


def parsed(raw: bytes) -> EntryId:
    ms, seq = raw.split(b"-")
    return int(ms), int(seq)


def spelt(entry: EntryId) -> bytes:
    return b"%d-%d" % entry


def record(event_id: str, payload: str) -> EncodedEvent:
    event = Event(type="a.b", id=event_id, payload=payload, timestamp=0)
    return EncodedEvent.of(event, event.encode())


@dataclass
class Mark:
    """The mark of an event that was written to the journal; *entry* is set after the write."""

    digest: str
    attempt: str
    entry: EntryId | None = None


@dataclass
class Group:
    """A consumer group: its position, its pending entries by consumer, and how many entries ended in which way."""

    last: EntryId
    owed: int
    pending: dict[EntryId, str] = field(default_factory=dict)
    consumers: set[str] = field(default_factory=set)
    acknowledged: int = 0
    lost: int = 0


class WritingMachine(RepeatingMachine):
    """A model that writes, and compares the whole state of Redis with the expected state after each step."""

    def __init__(self, url: str) -> None:
        super().__init__()
        prefix = f"test:{uuid.uuid4().hex[:12]}:"
        settings = {
            name: BridgeSettings.load(redis_url=url, channel_prefix=prefix, event_ttl_s=TTL_S, group=name)
            for name in GROUPS
        }
        self.dedup_ttl_ms = settings["one"].dedup_ttl_ms
        self.keys = Keys(prefix)
        self.client = connect(settings["one"])
        self.storages = {name: Storage(self.client, settings[name]) for name in GROUPS}
        self.journal = self.storages["one"].journal
        self.channel: Any = self.client.pubsub(ignore_subscribe_messages=True)
        self.channel.subscribe(self.keys.channel("a.b"))
        # The expected state of Redis.
        self.exists = False
        self.top = FIRST
        self.entries: dict[EntryId, bytes] = {}
        self.marks: dict[str, Mark] = {}
        self.event_keys: dict[str, bytes] = {}
        self.broadcasts: list[bytes] = []
        self.groups: dict[str, Group] = {}

    def teardown(self) -> None:
        """Receive everything that was broadcast, compare it with the model, and clean up."""
        self.client.publish(self.keys.channel("a.b"), b"end")
        heard: list[bytes] = []
        while heard[-1:] != [b"end"]:
            message = self.channel.get_message(timeout=5)
            heard += [message["data"]] if message else []
        self.channel.close()
        self.client.delete(self.keys.journal, *map(self.keys.seen, IDS), *map(self.keys.event, IDS))
        self.client.close()
        assert heard == [*self.broadcasts, b"end"]

    def now_ms(self) -> int:
        return int(self.client.time()[0]) * 1000

    @precondition(lambda self: self.top[0] < self.now_ms() - TTL_S * 1000)
    @rule(count=st.integers(1, 5))
    def write_old(self, count: int) -> None:
        """Write entries that are older than their retention, and so have no marks."""
        ms = max(self.top[0] + 1, self.now_ms() - 2 * TTL_S * 1000)
        for seq in range(count):
            self.client.xadd(self.keys.journal, {"event": b"old"}, id=spelt((ms, seq)))
        self.learn([b"old"] * count)

    @rule(batch=batches, broadcast=st.booleans())
    @repeatable
    def publish(self, batch: Batch, broadcast: bool) -> None:
        """Publish events; an equal attempt means a retry of the same publication."""
        records = [record(event_id, payload) for event_id, payload, _ in batch]
        attempts = [attempt for *_, attempt in batch]
        outcomes = self.journal.publish(records, attempts, broadcast=broadcast)
        new = self.written(outcomes, records, attempts, refill=False)
        self.event_keys |= {one.event.id: one.data for one in new}
        self.broadcasts += [one.data for one in new if broadcast]

    @rule(batch=batches, refill=st.booleans())
    @repeatable
    def append(self, batch: Batch, refill: bool) -> None:
        """Append events that were received, or found after the journal was deleted."""
        records = [record(event_id, payload) for event_id, payload, _ in batch]
        self.written(self.journal.append(records, refill=refill), records, [""] * len(batch), refill)

    def written(
        self, outcomes: list[AppendResult], records: list[EncodedEvent], attempts: list[str], refill: bool
    ) -> list[EncodedEvent]:
        """Compare the results with the expected ones; return the events that are new in the journal."""
        new: dict[str, EncodedEvent] = {}
        for one, attempt, outcome in zip(records, attempts, outcomes, strict=True):
            event_id, digest = one.event.id, one.event.digest
            mark = self.marks.get(event_id)
            if mark is None or (refill and event_id not in new and mark.entry not in self.entries):
                self.marks[event_id] = Mark(digest, one.fingerprint + attempt)
                new[event_id] = one
                assert outcome == "appended"
            elif mark.digest != digest:
                assert outcome == ("repeated" if refill else "conflict")
            else:
                assert outcome == ("appended" if attempt and one.fingerprint + attempt == mark.attempt else "repeated")
        for event_id, entry in zip(new, self.learn([one.data for one in new.values()]), strict=True):
            self.marks[event_id].entry = entry
        return list(new.values())

    def learn(self, data: list[bytes]) -> list[EntryId]:
        """Add the new entries of the journal, which must be *data*, to the model; return their ids."""
        rows: Any = self.client.xrange(self.keys.journal, min=b"(" + spelt(self.top))
        assert [fields[b"event"] for _, fields in rows] == data
        found = [parsed(raw) for raw, _ in rows]
        self.entries |= dict(zip(found, data, strict=True))
        for group in self.groups.values():
            group.owed += len(found)
        self.top = max([self.top, *found])
        self.exists = self.exists or bool(found)
        return found

    # Invariants

    @invariant()
    def marks_and_event_keys_are_as_written(self) -> None:
        """Marks and event keys have their TTL, and no event overwrites another one with the same id."""
        for event_id in IDS:
            with self.client.pipeline(transaction=False) as pipe:
                for key in (self.keys.seen(event_id), self.keys.event(event_id)):
                    pipe.get(key).pttl(key)
                mark, mark_ttl_ms, data, ttl_ms = pipe.execute()
            known = self.marks.get(event_id)
            spelling = known and f"{known.digest}:{known.attempt}:".encode() + spelt(known.entry or FIRST)
            assert (mark, data) == (spelling, self.event_keys.get(event_id))
            assert mark is None or 0 < mark_ttl_ms <= self.dedup_ttl_ms
            assert data is None or 0 < ttl_ms <= TTL_S * 1000

    @invariant()
    def the_journal_is_as_written(self) -> None:
        """Every expected entry is in the journal once, in order."""
        rows: Any = self.client.xrange(self.keys.journal)
        assert [(parsed(raw), fields[b"event"]) for raw, fields in rows] == list(self.entries.items())

    @invariant()
    def every_entry_of_a_group_has_one_place(self) -> None:
        """Every entry is either undelivered, pending at one consumer, acknowledged, or counted as lost."""
        rows: Any = self.client.xinfo_groups(self.keys.journal) if self.exists else []
        assert {row["name"].decode(): parsed(row["last-delivered-id"]) for row in rows} == {
            name: group.last for name, group in self.groups.items()
        }
        for name, group in self.groups.items():
            with self.client.pipeline(transaction=False) as pipe:
                pipe.xpending_range(self.keys.journal, name, "-", "+", 1000)
                pipe.xrange(self.keys.journal, min=b"(" + spelt(group.last))
                pipe.xinfo_consumers(self.keys.journal, name)
                pending, waiting, there = pipe.execute()
            holders = {parsed(row["message_id"]): row["consumer"].decode() for row in pending}
            assert (holders, {row["name"].decode() for row in there}) == (group.pending, group.consumers)
            assert len(pending) + len(waiting) + group.acknowledged + group.lost == group.owed

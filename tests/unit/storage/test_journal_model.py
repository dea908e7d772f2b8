"""The journal compared with a model of it in plain Python: any order of calls, repeated calls, and faults in between.

Time does not pass in this test; its effects are produced explicitly. Old entries are written under old ids before the
first new one, and an expired mark is deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from bridge import JournalLost
from bridge.storage.entries import Entry
from bridge.testing.redis_server import RedisServer
from tests.support.journal_model import FIRST, IDS, TTL_S, EntryId, Group, WritingMachine, groups, ids, parsed, spelt
from tests.support.models import repeatable, run_model

#: Small, so that removing the old entries takes several rounds.
TRIM_ENTRIES = 2

consumers = st.sampled_from(["a", "b"])
counts = st.integers(1, 3)
#: Indexes that select existing entries.
picks = st.integers(0, 20)
idle_ms = st.sampled_from([0, 3_600_000])
starts = st.sampled_from(["earliest", "latest"])


class JournalMachine(WritingMachine):
    """Each rule makes one call and compares its result with the model's."""

    @initialize(old=st.integers(0, 5), names=st.sets(groups), start=starts)
    def begin(self, old: int, names: set[str], start: str) -> None:
        """Start with old entries and with groups, or without."""
        self.write_old(old)
        for name in sorted(names):
            self.create_group(name, start)

    # Reading

    def of_group(self, name: str, do: Callable[[], Any]) -> Any:
        """Return what *do* returns, or None if the group does not exist, in which case *do* must raise JournalLost."""
        if name in self.groups:
            return do()
        with pytest.raises(JournalLost):
            do()
        return None

    @rule(name=groups, start=starts)
    @repeatable
    def create_group(self, name: str, start: Any) -> None:
        """Create a group unless it exists; this creates the journal too."""
        assert self.storages[name].consumer("a").create_group(start) == (name not in self.groups)
        self.exists, late = True, start == "latest"
        self.groups.setdefault(name, Group(self.top if late else FIRST, 0 if late else len(self.entries)))

    @rule(name=groups, consumer=consumers, count=counts)
    @repeatable
    def read(self, name: str, consumer: str, count: int) -> None:
        """Read new entries: in order, each by one consumer of the group."""
        found = self.of_group(name, lambda: self.storages[name].consumer(consumer).read(count, block_ms=1))
        if found is not None:
            group = self.groups[name]
            due = [entry for entry in self.entries if entry > group.last][:count]
            assert found == [Entry(spelt(entry), self.entries[entry]) for entry in due]
            there: Any = self.client.xinfo_consumers(self.keys.journal, name)
            if due or consumer.encode() in [row["name"] for row in there]:  # Redis 7.0 lists none without entries
                group.consumers.add(consumer)
            group.pending |= dict.fromkeys(due, consumer)
            group.last = max([group.last, *due])

    @rule(name=groups, consumer=consumers, count=counts)
    @repeatable
    def held(self, name: str, consumer: str, count: int) -> None:
        """Read the pending entries of a consumer again; deleted ones have no data."""
        found = self.of_group(name, lambda: self.storages[name].consumer(consumer).pending_entries(count))
        if found is not None:
            self.groups[name].consumers.add(consumer)
            mine = [entry for entry, owner in sorted(self.groups[name].pending.items()) if owner == consumer]
            assert found == [Entry(spelt(entry), self.entries.get(entry)) for entry in mine[:count]]

    @rule(name=groups, chosen=st.lists(picks, max_size=3))
    @repeatable
    def acknowledge(self, name: str, chosen: list[int]) -> None:
        """Acknowledge entries of any state and any consumer."""
        known = list(self.entries)
        acknowledged = {known[pick % len(known)] for pick in chosen if known}
        if acknowledged:
            command = self.storages[name].consumer("a").acknowledge_command([spelt(entry) for entry in acknowledged])
            self.client.execute_command(*command)
        if name in self.groups:
            done = acknowledged & self.groups[name].pending.keys()
            self.groups[name].acknowledged += len(done)
            self.drop(name, done)

    def drop(self, name: str, entries: Iterable[EntryId]) -> None:
        for entry in entries:
            del self.groups[name].pending[entry]

    @rule(name=groups, consumer=consumers, min_idle_ms=idle_ms, count=counts)
    @repeatable
    def claim(self, name: str, consumer: str, min_idle_ms: int, count: int) -> None:
        """Claim page by page: entries that were idle long enough are taken over, deleted ones are reported once."""
        self.held(name, consumer, 1)  # a consumer reads before it claims
        cursor, more = b"0-0", name in self.groups
        while more:
            group = self.groups[name]
            ahead = sorted(entry for entry in group.pending if entry >= parsed(cursor))
            claimed = self.storages[name].consumer(consumer).claim(min_idle_ms, cursor, count)
            walked = ahead if claimed.cursor == b"0-0" else [one for one in ahead if one < parsed(claimed.cursor)]
            removed = [entry for entry in walked if entry not in self.entries]
            taken = [entry for entry in walked if entry in self.entries and not min_idle_ms]
            assert (claimed.taken, claimed.removed) == (len(taken), len(removed))
            assert len(taken) + len(removed) <= count
            group.pending |= dict.fromkeys(taken, consumer)
            group.lost += len(removed)
            self.drop(name, removed)
            cursor, more = claimed.cursor, claimed.cursor != b"0-0"
            assert not more or walked, "the cursor moves"

    @rule(name=groups, consumer=consumers, min_idle_ms=idle_ms)
    @repeatable
    def leave(self, name: str, consumer: str, min_idle_ms: int) -> None:
        """Remove a consumer unless it has pending entries or was active recently."""
        left = self.of_group(name, lambda: self.storages[name].consumer("a").remove(consumer, min_idle_ms))
        if left is not None:
            group = self.groups[name]
            assert left == (consumer in group.consumers - set(group.pending.values()) and not min_idle_ms)
            group.consumers -= {consumer} if left else set()

    @rule(name=groups, chosen=st.lists(picks, max_size=3))
    def look(self, name: str, chosen: list[int]) -> None:
        """Calls that only read return what the model contains."""
        one, consumer = self.storages[name].journal, self.storages[name].consumer("a")
        assert (name in one.groups()) == (name in self.groups)
        assert one.unseen(IDS) == [event_id for event_id in IDS if event_id not in self.marks]
        ids = [spelt((self.top[0], pick)) for pick in chosen] + [spelt(entry) for entry in self.entries]
        there = {spelt(entry): data for entry, data in self.entries.items()}
        assert one.entries([raw.decode() for raw in ids]) == {
            raw.decode(): Entry(raw, there[raw]) for raw in ids if raw in there
        }
        idle = self.of_group(name, lambda: consumer.idle_consumers(0))
        if idle is not None:
            assert set(idle) == self.groups[name].consumers - set(self.groups[name].pending.values())

    # Time and faults

    @rule()
    @repeatable
    def trim(self) -> None:
        """Remove the oldest expired entries, and count for each group those that it had not processed."""
        horizon = (self.now_ms() - TTL_S * 1000, 0)
        old = [entry for entry in self.entries if entry < horizon]
        expected: Counter[str] = Counter()
        for name, group in self.groups.items():
            held = sorted(entry for entry in group.pending if entry < horizon)
            expected[name] = len(held) + len([entry for entry in old if entry > group.last])
            group.lost += expected[name]
            self.drop(name, held)
        removed, lost, more = 0, Counter[str](), True
        while more:
            trimmed = self.journal.trim(TRIM_ENTRIES)
            removed, more = removed + trimmed.removed, trimmed.more
            lost.update(trimmed.lost)
        assert (removed, +lost) == (len(old), +expected)
        for entry in old:
            del self.entries[entry]

    @rule(event_id=ids)
    def a_mark_expires(self, event_id: str) -> None:
        """The next event under this id is a new one."""
        assert self.client.delete(self.keys.seen(event_id)) == (self.marks.pop(event_id, None) is not None)

    @precondition(lambda self: self.entries)
    @rule(pick=picks)
    def somebody_removes_an_entry(self, pick: int) -> None:
        """Consumers that hold the entry get it without data; groups that have not read it never get it."""
        entry = list(self.entries)[pick % len(self.entries)]
        assert self.client.xdel(self.keys.journal, spelt(entry)) == 1
        del self.entries[entry]
        for group in self.groups.values():
            group.lost += entry > group.last

    @rule()
    def somebody_deletes_the_journal(self) -> None:
        """The groups are deleted with the journal; the marks stay."""
        assert self.client.delete(self.keys.journal) == self.exists
        self.exists, self.top, self.entries, self.groups = False, FIRST, {}, {}

    @precondition(lambda self: self.exists)
    @rule(name=groups)
    def somebody_destroys_a_group(self, name: str) -> None:
        """The other group is not affected."""
        assert self.client.xgroup_destroy(self.keys.journal, name) == (self.groups.pop(name, None) is not None)


@pytest.mark.timeout(240)
def test_the_journal_is_as_its_model(each_server: RedisServer, sequences: int) -> None:
    """For any order of calls, repeated or not, with faults in between, the journal behaves like its model."""
    run_model(lambda: JournalMachine(each_server.url), sequences)

"""Pub/sub to journal: events of programs that know nothing of the journal, each appended once.

Two threads do it. One listens and appends what it hears. The other looks for what was missed, after every new
subscription, by scanning the event keys for ids the journal has not seen.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from redis.exceptions import RedisError, ResponseError

from bridge.bus import Admission, Broadcast, ChannelListener, InvalidMessage, ReceivedBatch
from bridge.config import BATCH_BYTES
from bridge.errors import InvalidEvent
from bridge.events import ID_PATTERN, EncodedEvent, Event
from bridge.redis import BackOff
from bridge.storage import AppendResult, DeadLetter, Storage
from bridge.subscriber.intake.rejections import Refusals
from bridge.telemetry import Action, Counters, Liveness, log_fields

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Event keys read at once by catch-up, whatever their size.
_KEYS_AT_ONCE = 50
#: Characters kept of the name of a channel or key, which may have any length.
_ORIGIN_CHARS = 500
#: How long one who is behind waits for who is ahead.
_BEHIND_S = 0.02
#: Id of an event at the beginning of its JSON.
_ID = re.compile(rb'\{\s*"(?:id|eventId)"\s*:\s*"(%b)"' % ID_PATTERN.encode())
#: How long after its broadcast a program may write the key of an event.
_LATE_KEY_S = 2.0
#: How often who waits for that looks whether there is something else to do.
_LATE_KEY_TICK_S = 0.05
#: PTTL of a key that is not there, as one that expired since the scan.
_NO_KEY = -2
#: Pause between two looks for what was missed without a sign.
_LOOK_AGAIN_S = 300.0
#: How often a waiting catch-up looks whether it should stop.
_WAIT_S = 0.5


class Intake:
    """Brings foreign events into the journal of one bus.

    Arguments:
        storage, counters, pulse: Its parts.
    """

    def __init__(self, storage: Storage, counters: Counters, pulse: Liveness) -> None:
        settings = storage.settings
        self._storage = storage
        self._event_keys = storage.event_keys
        self._journal = storage.journal
        self._refusals = Refusals(storage.dead_letters, counters, settings)
        self._admission = Admission(settings)
        self._counters = counters
        self._pulse = pulse
        self._settings = settings
        self._keys = storage.keys
        self._gap = threading.Event()
        self._subscribed = False
        #: Whether what is heard is mostly in the journal already.
        self._behind = False
        self._looked_at = time.monotonic()
        self._journal_lost = threading.Event()
        #: Set once everything that was retained when we first subscribed is in the journal.
        self.caught_up = threading.Event()

    def refill(self) -> None:
        """Bring what is retained back into a journal that was deleted."""
        self._journal_lost.set()
        self._gap.set()

    def look_again(self) -> None:
        """Look for what was missed without a sign, where that happens, and not more often than every few minutes.

        In a cluster a broadcast goes from node to node, and is lost when the link between two is down; and whoever
        publishes writes the event key before the journal entry, and may die in between.
        """
        if self._event_keys.on_other_servers and time.monotonic() - self._looked_at > _LOOK_AGAIN_S:
            self._gap.set()

    def listen(self, stop: threading.Event) -> None:
        """Append what is broadcast until *stop* is set."""
        feed = ChannelListener(self._storage, self._counters, self._sift, self._pulse, self._settings.listen_types)
        feed.run(stop, lambda heard: self._on_heard(heard, stop))

    def catch_up(self, stop: threading.Event) -> None:
        """Append what was missed, after every new subscription, until *stop* is set."""
        while not stop.is_set():
            if not self._gap.wait(_WAIT_S):
                continue
            self._gap.clear()
            refill = self._journal_lost.is_set()
            self._journal_lost.clear()
            try:
                self._scan_twice(stop, refill)
            except BaseException:
                self._gap.set()
                if refill:
                    self._journal_lost.set()
                raise

    def _scan_twice(self, stop: threading.Event, refill: bool) -> None:
        self._looked_at = time.monotonic()
        self._until_done(lambda: self._scan(stop, refill), stop)
        # Once more: a program may broadcast before it writes the key, and both may straddle the gap.
        if not self._first_gap_within(_LATE_KEY_S, stop) and not stop.is_set():
            self._until_done(lambda: self._scan(stop, refill), stop)

    def _first_gap_within(self, seconds: float, stop: threading.Event) -> bool:
        """Wait, and return at once with True when there is a gap to look into before anybody takes us for ready."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stop.wait(_LATE_KEY_TICK_S):
            if self._gap.is_set() and not self.caught_up.is_set():
                return True
        return False

    def _on_heard(self, heard: ReceivedBatch, stop: threading.Event) -> None:
        if heard.subscribed:
            self._subscribed = True
            self._gap.set()  # subscribed first, scan second: nothing falls between
        self._counters.add_each("received", heard.types)
        came = self._until_done(lambda: self._take(heard.events, heard.invalid, "appended"), stop) or Counter()
        # Of what was refused nobody is ahead: a flood of it must not make us wait.
        known = heard.count - len(heard.events) - len(heard.invalid) + came["repeated"]
        if known or came["appended"]:
            self._behind = known >= came["appended"]

    def _sift(self, broadcasts: list[Broadcast]) -> list[Broadcast]:
        """Drop what is in the journal already, without decoding it.

        Every subscriber hears everything, also what tasks publish, which is in the journal before it is heard. So one
        who finds that half of what it hears is there already lets those go ahead who are, and looks first. For who is
        ahead a look would be in vain.
        """
        if not (self._behind and broadcasts):
            return broadcasts
        unknown = self._unknown(broadcasts)
        if unknown:
            time.sleep(_BEHIND_S)
            unknown = self._unknown(unknown)
        heard, new = (Counter([one.event_type for one in some]) for some in (broadcasts, unknown))
        self._counters.add_each("duplicate", (heard - new).elements())
        return unknown

    def _unknown(self, broadcasts: list[Broadcast]) -> list[Broadcast]:
        ids = [match[1].decode() if (match := _ID.match(data)) else "" for _, data in broadcasts]
        try:
            known = self._journal.known([(event_id, *one) for event_id, one in zip(ids, broadcasts, strict=True)])
        except (RedisError, OSError):
            return broadcasts  # appending is tried until it succeeds
        return [one for one, is_known in zip(broadcasts, known, strict=True) if not is_known]

    def _until_done(self, do: Callable[[], T], stop: threading.Event) -> T | None:
        """Repeat *do* while Redis is away: what was heard is not heard again. None when stopped before it was done."""
        what = f"the journal at {self._settings.redacted_url} does not answer"
        back_off = BackOff(log, what, self._counters, stop)
        while True:
            self._pulse.tick()
            try:
                done = do()
            except (RedisError, OSError) as error:
                back_off.wait(error)
            else:
                back_off.reset()
                return done
            if stop.is_set():
                return None

    def _take(
        self, heard: Sequence[EncodedEvent], invalid: Sequence[InvalidMessage], counter: str, refill: bool = False
    ) -> Counter[AppendResult]:
        """Append events, make dead letters of the rest; return how often what became of the events."""
        heard_now = counter == "appended"
        max_hops = self._settings.max_hops
        looping = [record for record in heard if record.event.hops > max_hops]
        records = [record for record in heard if record.event.hops <= max_hops]
        outcomes = [
            outcome
            for batch in _batches(records)
            for outcome in self._journal.append(batch, refill=refill, limit=heard_now)
        ]
        letters = [self._letter("hop_limit", f"{one.event.hops} hops, the limit is {max_hops}", one) for one in looping]
        for record, outcome in zip(records, outcomes, strict=True):
            if outcome == "conflict":
                text = f"id {record.event.id} is taken by an event with another type or payload"
                letters.append(self._letter("id_conflict", text, record))
            elif outcome == "limited":
                letters.append(self._refusals.limited(record, self._keys.channel(record.event.type)))
        for message in invalid:
            error, origin = message.error, message.origin[:_ORIGIN_CHARS]
            letters.append(DeadLetter.of_message(error.reason, str(error), origin, message.data))
        # A key is read again after every gap, for as long as it is there.
        self._refusals.keep(letters, remember=not heard_now)
        for name, outcome in ((counter, "appended"), ("duplicate", "repeated")):
            rows = zip(records, outcomes, strict=True)
            self._counters.add_each(name, [record.event.type for record, came in rows if came == outcome])
        return Counter(outcomes)

    def _letter(self, reason: str, detail: str, record: EncodedEvent) -> DeadLetter:
        return DeadLetter.of_message(reason, detail, self._keys.channel(record.event.type), record.data)

    def _scan(self, stop: threading.Event, refill: bool) -> None:
        stale, subscribed = 0, self._subscribed  # a group that was made anew has us look before we hear
        for names in self._event_keys.names():
            if stop.is_set():
                return
            stale += self._take_keys(names, refill)
        if stale:
            text = "%d event keys left alone: their timestamps say that they are older than bridge_event_ttl_s, %d s, "
            text += "which the keys outlive; make it longer than any program keeps them"
            extra = log_fields(Action.STALE_KEYS_SKIPPED, group=self._settings.group, count=stale)
            log.warning(text, stale, self._settings.event_ttl_s, extra=extra)
        if subscribed:
            self.caught_up.set()

    def _take_keys(self, names: Sequence[bytes], refill: bool) -> int:
        """Append the events behind *names* that are missing; return how many of them are taken for old."""
        ids = [self._event_keys.event_id(name) for name in names]
        unseen = set(ids if refill else self._journal.unseen(ids))
        wanted = [name for name, event_id in zip(names, ids, strict=True) if event_id in unseen]
        starts = range(0, len(wanted), _KEYS_AT_ONCE)
        return sum(self._take_values(wanted[start : start + _KEYS_AT_ONCE], refill) for start in starts)

    def _take_values(self, names: Sequence[bytes], refill: bool) -> int:
        records: list[EncodedEvent] = []
        invalid: list[InvalidMessage] = []
        stale = 0
        for name, (value, ttl_ms) in zip(names, self._event_keys.read_prefixes(names), strict=True):
            try:
                record = None if ttl_ms == _NO_KEY else self._decode(value)
            except InvalidEvent as error:
                data = value if isinstance(value, bytes) else b""
                invalid.append(InvalidMessage(name.decode(errors="backslashreplace"), data, error))
            else:
                if record is not None and self._stale(record.event, ttl_ms):
                    stale += 1
                elif record is not None:
                    records.append(record)
        self._take(records, invalid, "caught_up", refill)
        self._counters.add("stale", stale)
        return stale

    def _decode(self, value: Any) -> EncodedEvent:
        if isinstance(value, ResponseError) and str(value).startswith("WRONGTYPE"):
            raise InvalidEvent("wrong_key_type", "", "the event key holds no string")
        if isinstance(value, RedisError):
            raise value
        return self._admission.receive(value)

    def _stale(self, event: Event, ttl_ms: Any) -> bool:
        """Whether the key outlives our marks, so that only its timestamp tells that the event was taken long ago."""
        if isinstance(ttl_ms, RedisError):
            raise ttl_ms
        if 0 <= ttl_ms <= self._settings.event_ttl_ms or event.occurred_at is None:
            return False
        return event.occurred_at.timestamp() < time.time() - self._settings.event_ttl_s


def _batches(records: Sequence[EncodedEvent]) -> Iterator[list[EncodedEvent]]:
    batch: list[EncodedEvent] = []
    size = 0
    for record in records:
        if batch and size + len(record.data) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.data)
    if batch:
        yield batch

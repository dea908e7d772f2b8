"""Event keys to journal: finds the events that the channels did not bring, by scanning the event keys."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from bridge.bus import Admission, InvalidMessage
from bridge.config import BATCH_BYTES
from bridge.errors import InvalidEvent
from bridge.events import CLOCK_SKEW_S, EncodedEvent, Event
from bridge.redis import is_wrong_type
from bridge.storage import Storage, stream_position
from bridge.subscriber.intake.writer import JournalWriter, split_by_bytes
from bridge.telemetry import Action, Counters, log_fields

log = logging.getLogger(__name__)

#: Least size of a request, to which failures reduce it.
_MIN_BYTES = 64 * 1024
#: How long after its broadcast a program may write the key of an event.
_LATE_KEY_S = 2.0
#: How often the wait for late keys checks whether another scan was requested.
_LATE_KEY_TICK_S = 0.05
#: PTTL of a key that does not exist, as one that expired since the scan.
_NO_KEY = -2
#: Least interval between two scans for events that were lost without an error.
_RESCAN_INTERVAL_S = 300.0
#: How often a waiting catch-up checks whether it should stop.
_WAIT_S = 0.5


class CatchUp:
    """Appends events that were missed, by scanning the event keys for ids that the journal has not seen.

    One thread executes :meth:`run`; the other methods request a scan from it, and may be called from any thread. Each
    other field has one writer: ``_subscribed`` is set by the listening thread, ``_scanned_at`` and ``caught_up`` by the
    thread of :meth:`run`, which also clears the requests.

    Arguments:
        storage: The event keys and the journal.
        writer: Shared with the listening thread.
        counters: Raises ``stale``.
    """

    def __init__(self, storage: Storage, writer: JournalWriter, counters: Counters) -> None:
        self._event_keys = storage.event_keys
        self._keys = storage.keys
        self._journal = storage.journal
        self._settings = storage.settings
        self._admission = Admission(storage.settings)
        self._writer = writer
        self._counters = counters
        #: Most bytes that are read in one request, or one event.
        self._max_bytes = BATCH_BYTES
        self._requested = threading.Event()
        #: The first entry that may be missing, if a refill is requested.
        self._refill_since: str | None = None
        self._lock = threading.Lock()  # of that field
        self._subscribed = threading.Event()
        self._scanned_at = time.monotonic()
        #: Set once everything that was retained at the time of the first subscription is in the journal.
        self.caught_up = threading.Event()

    def on_subscribed(self) -> None:
        """Request a scan after a new subscription. Subscribed first, scanned second: no event falls in between."""
        self._subscribed.set()
        self._requested.set()

    def refill(self, since: str = "0-0") -> None:
        """Request that what was removed from the journal is appended again, if it is retained.

        Arguments:
            since: Only the entries from this id on; by default all, since the journal was deleted.
        """
        with self._lock:
            self._refill_since = min(self._refill_since or since, since, key=stream_position)
        self._requested.set()

    def rescan_if_due(self) -> None:
        """Request a scan where events can be lost without an error, at most every five minutes.

        In a Redis Cluster, a broadcast passes from node to node and is lost when the link between two of them is down.
        And a publisher writes the event key before the journal entry there, and may crash in between.
        """
        if self._event_keys.on_other_servers and time.monotonic() - self._scanned_at > _RESCAN_INTERVAL_S:
            self._requested.set()

    def run(self, stop: threading.Event) -> None:
        """Scan whenever it was requested, until *stop* is set."""
        while not stop.is_set():
            if not self._requested.wait(_WAIT_S):
                continue
            self._requested.clear()
            with self._lock:
                refill, self._refill_since = self._refill_since, None
            try:
                self._scan_twice(stop, refill)
            except BaseException:
                self._requested.set()
                if refill is not None:
                    self.refill(refill)
                raise

    def _scan_twice(self, stop: threading.Event, refill: str | None) -> None:
        self._scanned_at = time.monotonic()
        self._max_bytes = BATCH_BYTES
        self._writer.retry(lambda: self.scan(stop, refill=refill), stop)
        # A program may broadcast before it writes the key, and the gap may lie between the two.
        if not self._requested_within(_LATE_KEY_S, stop) and not stop.is_set():
            self._writer.retry(lambda: self.scan(stop, refill=refill), stop)

    def _requested_within(self, seconds: float, stop: threading.Event) -> bool:
        """Wait; return True at once if another scan is requested before this subscriber counts as ready."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stop.wait(_LATE_KEY_TICK_S):
            if self._requested.is_set() and not self.caught_up.is_set():
                return True
        return False

    def scan(self, stop: threading.Event, *, refill: str | None = None) -> None:
        """Scan all event keys once, or until *stop* is set.

        Arguments:
            refill: Append also what the journal has seen, if its entry had this id or a later one and is missing.

        Raises:
            RedisError: Redis failed; calling again is safe.
        """
        stale = 0
        subscribed = self._subscribed.is_set()  # a new group requests a scan before the first subscription
        for names in self._event_keys.names():
            if stop.is_set():
                return
            stale += self._take_keys(names, refill)
        if stale:
            text = "Skipped %d event keys that live longer than bridge_event_ttl_s (%d s), and whose events are older "
            text += "than that or have no timestamp that tells their age. "
            text += "Set it above the longest lifetime of event keys on this bus."
            extra = log_fields(Action.STALE_KEYS_SKIPPED, group=self._settings.group, count=stale)
            log.warning(text, stale, self._settings.event_ttl_s, extra=extra)
        if subscribed:
            self.caught_up.set()

    def _take_keys(self, names: Sequence[bytes], refill: str | None) -> int:
        """Append the events in the keys *names* that the journal lacks; return the number of stale keys."""
        ids = [self._keys.event_id(name) for name in names]
        unseen = set(self._journal.unseen(ids) if refill is None else self._journal.missing(ids, refill))
        wanted = [name for name, event_id in zip(names, ids, strict=True) if event_id in unseen]
        largest = self._settings.max_event_bytes  # more is not read of a value
        keys = self._event_keys.sizes_to_read(wanted)
        try:
            batches = split_by_bytes(keys, lambda key: min(key[1], largest), self._max_bytes)
            return sum(self._take_values(batch, refill=refill is not None) for batch in batches)
        except (RedisError, OSError):
            # Redis closes a connection to which it has more to send than client-output-buffer-limit allows.
            self._max_bytes = max(_MIN_BYTES, self._max_bytes // 2)
            raise

    def _take_values(self, keys: Sequence[tuple[bytes, int]], *, refill: bool) -> int:
        """Append the events in *keys*, given with their sizes; return the number of stale keys."""
        events: list[EncodedEvent] = []
        invalid: list[InvalidMessage] = []
        skipped: list[tuple[bytes, int, int]] = []
        stale = 0
        values = self._event_keys.read_prefixes([name for name, _ in keys])
        for (name, size), (value, ttl_ms) in zip(keys, values, strict=True):
            if ttl_ms == _NO_KEY:
                continue
            if isinstance(ttl_ms, RedisError):
                raise ttl_ms
            try:
                found = self._decode(value)
            except InvalidEvent as error:
                data = value if isinstance(value, bytes) else b""
                invalid.append(InvalidMessage(name.decode(errors="backslashreplace"), data, error))
                skipped.append((name, size, ttl_ms))
                continue
            is_stale = self._is_stale(found.event, ttl_ms)
            stale += is_stale
            if not is_stale:
                events.append(found)
            if is_stale or found.event.hops > self._settings.max_hops:
                skipped.append((name, size, ttl_ms))  # the journal does not take it, so every scan would find it
        self._writer.write(events, invalid, live=False, refill=refill)
        self._event_keys.skip(skipped)
        self._counters.add("stale", stale)
        return stale

    def _decode(self, value: Any) -> EncodedEvent:
        if isinstance(value, RedisError):
            if is_wrong_type(value):
                raise InvalidEvent("wrong_key_type", "", "the event key does not hold a string")
            raise value
        return self._admission.receive(value)

    def _is_stale(self, event: Event, ttl_ms: int) -> bool:
        """Return whether the event may have been appended so long ago that its mark has expired.

        A key that expires within ``event_ttl_s`` does not outlive the mark. For others, the timestamp decides. Without
        one, or with one in the future, the event may have any age: then it is left to the channel, on which new events
        arrive. Otherwise it would be taken for a new one after every interruption.
        """
        if 0 <= ttl_ms <= self._settings.event_ttl_ms:
            return False
        if event.occurred_at is None:
            return True
        age_s = time.time() - event.occurred_at.timestamp()
        return not -CLOCK_SKEW_S <= age_s <= self._settings.event_ttl_s

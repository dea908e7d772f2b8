"""Channels to journal: events of programs that do not use the journal, each appended once.

What the channels do not bring, :mod:`bridge.subscriber.intake.catch_up` finds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

from redis.exceptions import RedisError

from bridge.bus import Broadcast, ChannelListener, ReceivedBatch
from bridge.storage import Storage
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.intake.writer import ID_FIRST, JournalWriter
from bridge.telemetry import Counters, Liveness

#: How long a subscriber that mostly receives duplicates lets a faster one append first. With two subscribers and 2,500
#: external events a second, the slower one decodes less than 1% of them and uses half as much CPU time as without this
#: pause, when each decodes 70%.
_YIELD_S = 0.02


class Intake:
    """Listens to the event channels of one bus. Used by one thread, which alone reads and writes its fields.

    Arguments:
        storage: The journal; its settings have the ``listen_types``.
        writer: Appends the events.
        catch_up: Scans the event keys after each new subscription.
        counters: Raises ``received`` and ``duplicate``.
        liveness: As in :class:`ChannelListener`.
    """

    def __init__(
        self, storage: Storage, writer: JournalWriter, catch_up: CatchUp, counters: Counters, liveness: Liveness
    ) -> None:
        self._journal = storage.journal
        self._writer = writer
        self._catch_up = catch_up
        self._counters = counters
        types = storage.settings.listen_types
        self._listener = ChannelListener(storage, counters, self._drop_known, liveness, types)
        #: Whether most of the last events were in the journal already, since another subscriber is faster.
        self._slower = False

    def run(self, stop: threading.Event) -> None:
        """Append the events that are broadcast, until *stop* is set."""
        self._listener.run(stop, lambda batch: self._on_batch(batch, stop))

    def _on_batch(self, batch: ReceivedBatch, stop: threading.Event) -> None:
        if batch.subscribed:
            self._catch_up.on_subscribed()
        self._counters.add_each("received", batch.types)
        results = self._writer.retry(lambda: self._writer.write(batch.events, batch.invalid, live=True), stop)
        if results is None:
            return
        # Rejected messages do not count: no subscriber appends them, and a flood of them must not make this one wait.
        known = batch.count - len(batch.events) - len(batch.invalid) + results["repeated"]
        if known or results["appended"]:
            self._slower = known >= results["appended"]

    def _drop_known(self, broadcasts: Sequence[Broadcast]) -> list[Broadcast]:
        """Drop the events that are in the journal already, without decoding them.

        Every subscriber receives every event, also those of ``publish_event()``, which are in the journal before they
        are broadcast. A subscriber that finds at least half of its events there checks the journal before it decodes
        them. The faster one does not check, since nearly all events are new to it.
        """
        if not (self._slower and broadcasts):
            return list(broadcasts)
        unknown = self._unknown(broadcasts)
        if unknown:
            unknown = self._yield_to_faster_subscriber(unknown)
        received = Counter([one.event_type for one in broadcasts])
        new = Counter([one.event_type for one in unknown])
        self._counters.add_each("duplicate", (received - new).elements())
        return unknown

    def _yield_to_faster_subscriber(self, broadcasts: Sequence[Broadcast]) -> list[Broadcast]:
        time.sleep(_YIELD_S)
        return self._unknown(broadcasts)

    def _unknown(self, broadcasts: Sequence[Broadcast]) -> list[Broadcast]:
        ids = [match[1].decode() if (match := ID_FIRST.match(data)) else "" for _, data in broadcasts]
        try:
            known = self._journal.known([(event_id, *one) for event_id, one in zip(ids, broadcasts, strict=True)])
        except (RedisError, OSError):
            return list(broadcasts)  # appending is retried until it succeeds
        return [one for one, is_known in zip(broadcasts, known, strict=True) if not is_known]

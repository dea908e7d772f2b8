"""Upkeep of the journal: take over what dead consumers hold, remove what has outlived its retention."""

from __future__ import annotations

import logging
import threading
import time

from bridge.dispatcher import Dispatcher
from bridge.journal import Journal
from bridge.metrics import Counters
from bridge.settings import BridgeSettings

log = logging.getLogger(__name__)

#: Entries claimed at once; the server sends them whole.
_CLAIM_COUNT = 50


class Upkeep:
    """What a subscriber does now and then, between two batches of its dispatcher, in the same thread.

    Arguments:
        journal, dispatcher, counters: Its parts.
        settings: ``upkeep_interval_s``, ``claim_idle_s``.
        consumer: Who takes over.
    """

    def __init__(
        self, journal: Journal, dispatcher: Dispatcher, counters: Counters, settings: BridgeSettings, consumer: str
    ) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._counters = counters
        self._settings = settings
        self._consumer = consumer
        self._due_at = 0.0

    def step(self, stop: threading.Event) -> None:
        """Do it if it is due; end early when *stop* is set.

        Raises:
            JournalLost: The group is gone.
        """
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + self._settings.upkeep_interval_s
        self._claim(stop)
        self._trim(stop)

    def _claim(self, stop: threading.Event) -> None:
        cursor, min_idle_ms = b"0-0", int(self._settings.claim_idle_s * 1000)
        while not stop.is_set():
            claimed = self._journal.claim(self._consumer, min_idle_ms, cursor, _CLAIM_COUNT)
            if claimed.taken:
                self._dispatcher.look_at_held()
            self._counters.add("claimed", claimed.taken)
            self._lost(claimed.removed, "were removed from the journal while a dead consumer held them")
            cursor = claimed.cursor
            if cursor == b"0-0":
                return

    def _trim(self, stop: threading.Event) -> None:
        more = True
        while more and not stop.is_set():
            trimmed = self._journal.trim()
            more = trimmed.more
            self._counters.add("trimmed", trimmed.removed)
            for group, count in trimmed.lost.items():
                self._lost(count, f"of group {group} outlived their retention undispatched")

    def _lost(self, count: int, how: str) -> None:
        if count:
            self._counters.add("lost", count)
            log.error("%d events %s: lost", count, how)

"""Upkeep of a group: take over what dead consumers hold, remove what has outlived its retention, send again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bridge.storage import Storage, script
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.maintenance.rescuer import Recovery
from bridge.telemetry import Action, Counters, log_fields

log = logging.getLogger(__name__)

#: Entries claimed at once; the server sends them whole.
_CLAIM_COUNT = 50
#: Pauses between two rounds after which an elected subscriber that is not heard of counts as gone.
_TERM_INTERVALS = 3


class Upkeep:
    """What one subscriber of a group does now and then, between two batches of its dispatcher, in the same thread.

    The first to ask is elected, until it stops or is not heard of for a while; the others do nothing.

    Arguments:
        storage, dispatcher, recovery, counters: Its parts.
        look_again: Makes intake look for what was missed without a sign, if it is time for that.
        consumer: Who takes over.
    """

    def __init__(
        self,
        storage: Storage,
        dispatcher: Dispatcher,
        recovery: Recovery,
        look_again: Callable[[], None],
        counters: Counters,
        consumer: str,
    ) -> None:
        settings = storage.settings
        self._elect = script(storage.client, "elect")
        self._key = storage.keys.upkeep(settings.group)
        self._group = settings.group
        self._journal = storage.journal
        self._dispatcher = dispatcher
        self._recovery = recovery
        self._look_again = look_again
        self._counters = counters
        self._interval_s = settings.maintenance_interval_s
        self._presence = storage.presence
        self._claim_idle_ms = int(settings.claim_idle_s * 1000)
        self._consumer = consumer
        self._due_at = 0.0

    def step(self, stop: threading.Event) -> None:
        """Do it if it is due and this subscriber is elected; end early when *stop* is set.

        Raises:
            JournalLost: The group is gone.
            Exception: Redis or the broker failed; it is due again after the usual pause.
        """
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + self._interval_s
        if self._elect(keys=[self._key], args=[self._consumer, int(_TERM_INTERVALS * self._interval_s * 1000)]):
            self._claim(stop)
            self._remove_dead()
            self._trim(stop)
            self._look_again()
            self._recovery.sweep(stop)

    def resign(self) -> None:
        """Let another subscriber be elected at once."""
        self._elect(keys=[self._key], args=[self._consumer, 0])

    def _remove_dead(self) -> None:
        # Redis 7.0 calls those idle too that read and find nothing.
        alive = {self._consumer, *(one.name for one in self._presence.all() if one.alive)}
        for consumer in self._journal.idle_consumers(self._claim_idle_ms):
            if consumer not in alive and self._journal.leave(consumer, self._claim_idle_ms):
                self._counters.add("consumers_removed")
                extra = log_fields(Action.CONSUMER_REMOVED, group=self._group, consumer=consumer)
                log.info("consumer %s is gone and holds nothing: removed from the group", consumer, extra=extra)

    def _claim(self, stop: threading.Event) -> None:
        cursor = b"0-0"
        while not stop.is_set():
            claimed = self._journal.claim(self._consumer, self._claim_idle_ms, cursor, _CLAIM_COUNT)
            if claimed.taken:
                self._dispatcher.reread_pending()
            self._counters.add("entries_claimed", claimed.taken)
            self._lost(self._group, claimed.removed, "were removed from the journal while a dead consumer held them")
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
                self._lost(group, count, f"of group {group} outlived their retention undispatched")

    def _lost(self, group: str, count: int, how: str) -> None:
        if count:
            self._counters.add("lost", count)
            log.error("%d events %s: lost", count, how, extra=log_fields(Action.EVENT_LOST, group=group, count=count))

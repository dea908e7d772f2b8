"""Maintenance of a group: the jobs that its leader executes at intervals for all subscribers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from redis.exceptions import ResponseError

from bridge.storage import Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.maintenance.leader import Leader
from bridge.subscriber.maintenance.rescuer import Rescuer
from bridge.subscriber.members import Members
from bridge.telemetry import Action, Counters, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Entries per claim: one step must not block Redis for long.
_CLAIM_COUNT = 50
#: No further step of a repair begins after this time; dispatch waits meanwhile.
_MAX_REPAIR_S = 1.0

Job = Callable[[threading.Event], None]


class Maintenance:
    """Executes the jobs of a group while this subscriber is its leader, between two batches of the dispatcher.

    Arguments:
        storage: The journal, and the presence of the subscribers.
        dispatcher: Rereads its pending entries after a claim.
        catch_up: Scans the event keys when that is due, or when entries were removed.
        rescuer: Redispatches overdue tasks.
        dead_letters: Of this subscriber; tries again to write those that Redis refused.
        counters: Raises ``entries_claimed``, ``consumers_removed``, ``trimmed``, ``lost`` and ``journal_lost``.
        members: The other subscribers. If they have other handlers, all are leaders in turn.
    """

    def __init__(
        self,
        storage: Storage,
        dispatcher: Dispatcher,
        catch_up: CatchUp,
        rescuer: Rescuer,
        dead_letters: DeadLetterWriter,
        counters: Counters,
        members: Members,
    ) -> None:
        settings = storage.settings
        key, interval_s = storage.keys.leader(settings.group), settings.maintenance_interval_s
        self._leader = Leader(storage.client, key, members.name, interval_s)
        self._members = members
        self._group = settings.group
        self._journal = storage.journal
        self._presence = storage.presence
        self._dispatcher = dispatcher
        self._dead_letters = dead_letters
        self._catch_up = catch_up
        self._counters = counters
        self._consumer = storage.consumer(members.name)
        self._claim_idle_ms = int(settings.claim_idle_s * 1000)
        self._interval_s = interval_s
        self._due_at = 0.0
        self._journal_repair = storage.journal_repair
        self._throttle = LogThrottle()  # a publisher can cause a repair at any rate
        #: Whether entries of a journal that was set aside may be left.
        self._moves_back = False
        #: In this order. Each ends early when its argument is set.
        self._jobs: list[Job] = [
            self.repair_journal,
            self._claim,
            self._remove_dead,
            self._trim,
            self._rescan,
            rescuer.rescue,
        ]

    def step(self, stop: threading.Event) -> None:
        """Execute the jobs if they are due and this subscriber is the leader; end early when *stop* is set.

        If Redis refuses a command, such as one without permission, the other jobs are executed all the same.

        Raises:
            JournalLost: The journal or the group no longer exists.
            Exception: Redis or the broker failed. The jobs are due again after the usual interval.
        """
        if self._moves_back:
            self.repair_journal(stop)
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + self._interval_s
        self._dead_letters.retry_kept()
        if self._leader.elected():
            self._execute_jobs(stop)
            if self._members.differ:
                self._leader.resign()  # each in turn, since each sends only tasks of the handlers that it has

    def _execute_jobs(self, stop: threading.Event) -> None:
        refusals: list[ResponseError] = []
        for job in self._jobs:
            try:
                job(stop)
            except ResponseError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]

    def repair_journal(self, stop: threading.Event) -> None:
        """Make the ids of the journal times again if they are ahead of the clock; move entries for about a second.

        Any subscriber may do so. The next steps continue.

        Raises:
            Exception: Redis failed; the next call continues.
        """
        if ahead_ms := self._journal_repair.set_aside():
            extra = log_fields(Action.JOURNAL_AHEAD, group=self._group, consumer=self._consumer.name)
            text = "The last id of the journal was %.0f s ahead of the clock of Redis, so its entries get new ids. "
            text += "Check the clock of the server, and which programs have permission to write to the journal."
            if self._throttle.allow(Action.JOURNAL_AHEAD):
                log.error(text, ahead_ms / 1000, extra=extra)
        deadline = time.monotonic() + _MAX_REPAIR_S
        moved = 0
        self._moves_back = True
        while self._moves_back and not stop.is_set() and time.monotonic() < deadline:
            count, self._moves_back = self._journal_repair.move_back()
            moved += count
        if moved and self._throttle.allow(Action.JOURNAL_REPAIRED):
            extra = log_fields(Action.JOURNAL_REPAIRED, group=self._group, consumer=self._consumer.name, count=moved)
            log.info("Moved %d entries back to the journal, under new ids", moved, extra=extra)

    def resign(self) -> None:
        """Let another subscriber become leader at once."""
        self._leader.resign()

    def _claim(self, stop: threading.Event) -> None:
        cursor = b"0-0"
        while not stop.is_set():
            try:
                claimed = self._consumer.claim(self._claim_idle_ms, cursor, _CLAIM_COUNT)
            except Exception:
                self._dispatcher.reread_pending()  # the reply may be lost, and not the entries
                raise
            if claimed.taken:
                self._dispatcher.reread_pending()
            self._counters.add("entries_claimed", claimed.taken)
            self._lost(self._group, claimed.removed, "their entries were removed while a dead consumer held them")
            cursor = claimed.cursor
            if cursor == b"0-0":
                return

    def _remove_dead(self, _: threading.Event) -> None:
        # To Redis before 7.2, a consumer that reads and finds nothing is idle too.
        alive = {self._consumer.name, *(one.name for one in self._presence.all() if one.alive)}
        for consumer in self._consumer.idle_consumers(self._claim_idle_ms):
            if consumer not in alive and self._consumer.remove(consumer, self._claim_idle_ms):
                self._counters.add("consumers_removed")
                extra = log_fields(Action.CONSUMER_REMOVED, group=self._group, consumer=consumer)
                text = "Removed dead consumer %s of group %s; it had no pending entries"
                log.info(text, consumer, self._group, extra=extra)

    def _trim(self, stop: threading.Event) -> None:
        more = True
        while more and not stop.is_set():
            trimmed = self._journal.trim()
            more = trimmed.more
            self._counters.add("trimmed", trimmed.removed)
            if trimmed.cut:
                self._on_cut(trimmed.cut)
            for group, count in trimmed.lost.items():
                self._lost(group, count, "they were older than bridge_event_ttl_s before they were dispatched")
        self._consumer.forget_removed()

    def _on_cut(self, since: str) -> None:
        """Restore what another program has removed from the journal before all groups had it."""
        self._counters.add("journal_lost")
        extra = log_fields(Action.JOURNAL_CUT, group=self._group, consumer=self._consumer.name)
        text = "Another program removed entries from the journal. Those from %s on are filled in from the event keys"
        log.error(text, since, extra=extra)
        self._catch_up.refill(since)

    def _rescan(self, _: threading.Event) -> None:
        self._catch_up.rescan_if_due()

    def _lost(self, group: str, count: int, why: str) -> None:
        if count:
            self._counters.add("lost", count)
            extra = log_fields(Action.EVENT_LOST, group=group, count=count)
            log.error("Lost %d events of group %s: %s", count, group, why, extra=extra)

"""The loop of the dispatching thread: joins the consumer group, dispatches, does maintenance, and leaves the group."""

from __future__ import annotations

import logging
import threading

from bridge.errors import JournalAhead, JournalLost
from bridge.handlers import IMPORT_ADVICE
from bridge.redis import BackOff
from bridge.storage import Storage
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.maintenance.maintenance import Maintenance
from bridge.subscriber.members import Members
from bridge.telemetry import Action, Counters, Liveness, log_fields

log = logging.getLogger(__name__)

_NO_HANDLERS = f"no handlers are registered: {IMPORT_ADVICE}"
#: Longest wait, at the stop, until other subscribers know that they hand over entries to another one, if there is one.
_WITHDRAW_S = 2.0


class DispatchLoop:
    """What one subscriber does as a member of its consumer group, from joining to leaving. Used by one thread.

    Arguments:
        storage: The journal, in which the group is; its settings have the ``group_start``.
        members: The other subscribers, which must know the handlers of this one.
        dispatcher, maintenance: Do one step each in turn.
        catch_up: Fills the journal again when it was lost.
        counters: Raises ``journal_lost``, ``errors`` and ``reconnects``.
        liveness: Gets a ``tick`` for every round.
    """

    def __init__(
        self,
        storage: Storage,
        members: Members,
        dispatcher: Dispatcher,
        maintenance: Maintenance,
        catch_up: CatchUp,
        counters: Counters,
        liveness: Liveness,
    ) -> None:
        self._journal = storage.journal
        self._consumer = storage.consumer(members.name)
        self._settings = storage.settings
        self._group = storage.settings.group
        self._group_start = storage.settings.group_start
        self._dispatcher = dispatcher
        self._maintenance = maintenance
        self._catch_up = catch_up
        self._members = members
        self._counters = counters
        self._liveness = liveness
        self._outage: BackOff | None = None
        self._warned = False
        #: Set once Redis has answered.
        self.connected = threading.Event()
        #: Set once this subscriber reads the journal, the events missed before are in it, and others know its handlers.
        self.ready = threading.Event()

    @property
    def problem(self) -> str:
        """Why dispatch fails now, or does not begin; empty if it works."""
        if not self._members.has_handlers:
            return _NO_HANDLERS
        return f"dispatch fails: {self._outage.last}" if self._outage and self._outage.failures else ""

    @property
    def waiting_for(self) -> str:
        """What dispatch waits for, which is not a problem; empty if it does not wait."""
        queue = self._dispatcher.full_queue
        return "" if queue is None else f"waiting for room in queue {queue}"

    def run(self, stop: threading.Event) -> None:
        """Dispatch until *stop* is set, through outages; then finish the batch in progress and leave the group."""
        self._outage = outage = BackOff(log, "Dispatch paused, events stay in the journal", self._counters, stop)
        joined = False
        while not stop.is_set():
            self._liveness.tick()
            try:
                joined = joined or self._join()
                self.connected.set()
                if joined and self._handlers_registered(stop):
                    self._step(stop)
                    self._maintenance.step(stop)
                    if self._catch_up.caught_up.is_set() and self._members.announced.is_set():
                        self.ready.set()
                outage.reset()
            except JournalLost as error:
                joined = False
                self._on_journal_lost(error)
            except BaseException as error:  # noqa: BLE001  # the broker's client and user code may raise anything
                outage.wait(error)
        if outage.failures == 0:  # otherwise Redis may hang, and stopping would wait for it again
            self._leave()
        else:
            self._dispatcher.close()

    def _step(self, stop: threading.Event) -> None:
        try:
            self._dispatcher.step()
        except JournalAhead:
            self._maintenance.repair_journal(stop)  # at once, since publishers may wait for it

    def _handlers_registered(self, stop: threading.Event) -> bool:
        """Return whether there are handlers; otherwise wait a moment for the first one.

        An event without a handler is acknowledged, so a subscriber without handlers must not read any. Nor must it be
        the leader, who sends tasks again.
        """
        if self._members.has_handlers:
            return True
        if not self._warned:
            extra = log_fields(Action.NO_HANDLERS, group=self._group, consumer=self._consumer.name)
            text = "Events of group %s stay in the journal: %s"
            log.warning(text, self._group, _NO_HANDLERS, extra=extra)
            self._warned = True
        stop.wait(self._settings.block_ms / 1000)
        return False

    def _join(self) -> bool:
        """Ensure that the group exists; return False while that has to wait."""
        if self._group in self._journal.groups():
            return True  # checked first, since a server that is out of memory would refuse to create it
        # With "latest", all retained events must be in the journal before the group starts, or catch-up would add them
        # as new ones.
        starts_late = self._group_start == "latest"
        if starts_late and not self._catch_up.caught_up.wait(self._settings.block_ms / 1000):
            return False
        if not starts_late:
            # An existing group may have lost its journal while no subscriber was running. The request comes first: if
            # the reply to the creation is lost, the group is found the next time.
            self._catch_up.refill()
        if self._consumer.create_group(self._group_start):
            extra = log_fields(Action.GROUP_CREATED, group=self._group, consumer=self._consumer.name)
            text = "Created consumer group %s, starting with the %s event"
            log.info(text, self._group, "next" if starts_late else "oldest retained", extra=extra)
        return True

    def _on_journal_lost(self, error: JournalLost) -> None:
        extra = log_fields(Action.JOURNAL_LOST, group=self._group, consumer=self._consumer.name)
        text = "The journal or consumer group %s was deleted. It is recreated and filled from the event keys: %s"
        log.error(text, self._group, error, extra=extra)
        self._counters.add("journal_lost")
        self._group_start = "earliest"  # an event that is dispatched twice has the same task id; a lost one is lost
        self._catch_up.refill()
        self._dispatcher.reconnect()  # in Redis, kombu's queue bindings may be lost too

    def _leave(self) -> None:
        try:
            if self._members.differ:
                self._members.withdrawn.wait(_WITHDRAW_S)
            self._dispatcher.finish()
            self._maintenance.resign()
            self._consumer.leave()
        except Exception as error:  # noqa: BLE001  # the broker's client may raise anything
            extra = log_fields(Action.LEAVE_FAILED, group=self._group, consumer=self._consumer.name)
            text = "Could not leave group %s; another subscriber will claim the pending entries: %s"
            log.info(text, self._group, error, extra=extra)

"""The subscriber: intake, dispatch and upkeep of one process, started and stopped as one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery

from bridge.broker import Outbox
from bridge.config import BridgeSettings, refuse_pickled_tasks
from bridge.errors import JournalLost, SettingsError
from bridge.handlers import registry
from bridge.redis import BackOff, connect
from bridge.storage import Storage
from bridge.subscriber.checks import Finding, check_settings, refused_handlers
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.intake.intake import Intake
from bridge.subscriber.maintenance.maintenance import Upkeep
from bridge.subscriber.maintenance.rescuer import Recovery
from bridge.subscriber.monitoring.health import Health
from bridge.subscriber.monitoring.reporter import PresenceReporter
from bridge.telemetry import Action, Counters, Liveness, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Longest wait for the threads: each notices a stop within 2 s, or within the socket timeout when Redis hangs.
_STOP_TIMEOUT_S = 8.0
_TERMINATE_TIMEOUT_S = 2.0


class Subscriber:
    """Turns the events of the bus into tasks of *app*, in threads of its own, until stopped.

    Starting needs neither Redis nor the broker: it waits for them. Any number may run; each event is dispatched by
    one of those with the same group.

    Arguments:
        app: The Celery application whose handlers are called.
        settings: Where the bus is and how to treat it.
        name: Name of this subscriber within its group; no other live process may use it.

    Raises:
        SettingsError: ``bridge_routes`` or ``task_always_eager`` cannot work, or a task is sent with pickle.
    """

    def __init__(self, app: Celery, settings: BridgeSettings, name: str) -> None:
        if app.conf.task_always_eager:
            raise SettingsError("task_always_eager runs tasks where they are called; a subscriber needs a broker")
        app.finalize()  # a task that cannot be made must show now, not with its first event
        refuse_pickled_tasks(app.tasks)
        self.name = name
        self.counters = Counters(pattern for handler in registry for pattern in handler.patterns)
        self._pulse = Liveness()
        #: Set once this subscriber reads the journal and has brought what it missed into it.
        self.ready = threading.Event()
        self._settings = settings
        self._group_start = settings.group_start
        self._client = connect(settings)
        storage = Storage(self._client, settings)
        self._journal = storage.journal
        self._outbox = Outbox(app, settings)
        self._dispatcher = Dispatcher(storage, self._outbox, registry, self.counters, consumer=name)
        recovery = Recovery(storage, self._outbox, registry, self.counters)
        self._intake = Intake(storage, self.counters, self._pulse)
        look_again = self._intake.look_again
        self._upkeep = Upkeep(storage, self._dispatcher, recovery, look_again, self.counters, consumer=name)
        self._app = app
        #: Settings with which events are lost, found after the bus first answered.
        self._findings: list[Finding] = []
        self._answered = threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._outage = BackOff(log, "dispatch waits, the journal keeps", self.counters, self._stop)
        health = Health(app, settings, self._pulse, self._intake.caught_up, self._trouble, self._waits)
        self._monitoring = PresenceReporter(settings, self.counters, self._pulse, health, name)

    def start(self) -> None:
        """Start the threads and return at once."""
        jobs: dict[str, Callable[[], None]] = {"bridge-dispatch": self._dispatch}
        if self._settings.enable_pubsub:
            jobs["bridge-listen"] = lambda: self._intake.listen(self._stop)
            jobs["bridge-catch-up"] = lambda: self._intake.catch_up(self._stop)
        else:
            self._intake.caught_up.set()
        for name, job in jobs.items():
            # Daemons, so that a process that dies of something else does not hang on them.
            thread = threading.Thread(target=self._keep_running, args=(job,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._monitoring.start()
        # No stop waits for this one: it shares nothing with the others, and a server may be slow to answer.
        threading.Thread(target=self._check, name="bridge-check", daemon=True).start()
        how = (
            "in one transaction with the journal: once"
            if self._outbox.one_redis
            else "through the broker: at least once"
        )
        extra = log_fields(Action.SUBSCRIBER_STARTED, group=self._settings.group, consumer=self.name)
        place = self._settings.redacted_url
        text = "subscriber %s of group %s at %s; tasks are sent %s"
        log.info(text, self.name, self._settings.group, place, how, extra=extra)

    def stop(self) -> None:
        """Finish the batch under way, leave the group, close the connections. May be called again."""
        self._end(_STOP_TIMEOUT_S)

    def terminate(self) -> None:
        """Stop without waiting long; what was under way is dispatched by the next subscriber."""
        self._end(_TERMINATE_TIMEOUT_S)

    def info(self) -> dict[str, Any]:
        """Return what ``celery inspect stats`` shows of this subscriber."""
        state = self._waits() or ("ready" if self.ready.is_set() else "starting")
        log_fields = {"group": self._settings.group, "consumer": self.name, "state": state}
        return {**log_fields, "warnings": [str(finding) for finding in self._findings], **self.counters.snapshot()}

    def _trouble(self) -> str:
        return f"dispatch fails: {self._outage.last}" if self._outage.failures else ""

    def _waits(self) -> str:
        queue = self._dispatcher.full_queue
        return "" if queue is None else f"waiting for room in queue {queue}"

    def _end(self, timeout_s: float) -> None:
        self._stop.set()
        self._answered.set()
        deadline = time.monotonic() + timeout_s
        self._monitoring.stop(timeout_s)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in self._threads if thread.is_alive()]
        self._threads = []
        if late:
            names = ", ".join(late)
            extra = log_fields(Action.STOP_TIMED_OUT, group=self._settings.group, consumer=self.name, component=names)
            log.warning("%s still waiting for Redis or the broker; left behind", names, extra=extra)
            return
        self._outbox.close()
        self._client.close()

    def _keep_running(self, job: Callable[[], None]) -> None:
        """Run *job* until stopped. It handles Redis and broker being away; anything else is a bug, not the end."""
        thread, pace = threading.current_thread().name, LogThrottle()
        back_off = BackOff(log, f"{thread} failed and starts again", self.counters, self._stop)
        while not self._stop.is_set():
            try:
                job()
            except Exception as error:  # the loop must go on whatever an event does to it
                if pace.allow():
                    group, kind = self._settings.group, type(error).__name__
                    extra = log_fields(
                        Action.THREAD_FAILED, group=group, consumer=self.name, component=thread, reason=kind
                    )
                    log.exception("%s failed", thread, extra=extra)
                back_off.wait(error)

    def _check(self) -> None:
        """Warn once of settings with which events are lost."""
        self._answered.wait()
        if self._stop.is_set():
            return
        tasks = [self._app.tasks[handler.task_name] for handler in registry]
        self._findings = check_settings(self._settings, self._app, tasks)
        self._findings += refused_handlers(self._settings, registry.patterns)
        for finding in self._findings:
            extra = log_fields(Action.STARTUP_CHECK_FAILED, group=self._settings.group, setting=finding.setting)
            log.warning("%s", finding, extra=extra)

    def _dispatch(self) -> None:
        group_open = False
        while not self._stop.is_set():
            self._pulse.tick()
            try:
                group_open = group_open or self._open_group()
                self._answered.set()
                if group_open:
                    self._dispatcher.step()
                    self._upkeep.step(self._stop)
                    if self._intake.caught_up.is_set():
                        self.ready.set()
                self._outage.reset()
            except JournalLost as error:
                # From the beginning: better an event twice, with the same task id, than an event lost.
                extra = log_fields(Action.JOURNAL_LOST, group=self._settings.group, consumer=self.name)
                text = "the journal or group %s was deleted, made anew: %s"
                log.error(text, self._settings.group, error, extra=extra)
                self.counters.add("journal_lost")
                self._group_start, group_open = "earliest", False
                self._intake.refill()
                self._outbox.close()  # kombu's queue bindings may have gone with it; a new connection declares them
            except Exception as error:  # noqa: BLE001  # the broker's client may raise anything
                self._outage.wait(error)
        if self._outage.failures == 0:  # otherwise Redis may hang, and a stop would wait for it once more
            self._leave()
        else:
            self._dispatcher.close()

    def _leave(self) -> None:
        try:
            self._dispatcher.finish()
            self._upkeep.resign()
            self._journal.leave(self.name)
        except Exception as error:  # noqa: BLE001  # the broker's client may raise anything
            extra = log_fields(Action.LEAVE_FAILED, group=self._settings.group, consumer=self.name)
            log.info("left group %s without a word: %s", self._settings.group, error, extra=extra)

    def _open_group(self) -> bool:
        """Make sure that the group exists; False while that has to wait."""
        if self._journal.group_exists():
            return True  # also on a server without memory, which refuses to create what is there
        # With "latest", what is retained must enter the journal before the group begins, or catch-up would make it new.
        begin_late = self._group_start == "latest"
        if begin_late and not self._intake.caught_up.wait(self._settings.block_ms / 1000):
            return False
        if self._journal.create_group(self._group_start):
            extra = log_fields(Action.GROUP_CREATED, group=self._settings.group, consumer=self.name)
            text = "group %s begins with the %s event"
            log.info(text, self._settings.group, self._group_start, extra=extra)
            if not begin_late:
                self._intake.refill()  # a group that was there before lost its journal, maybe while nobody was here
        return True

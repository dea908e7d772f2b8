"""The subscriber: intake, dispatch, maintenance and monitoring of one process, started and stopped as one."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from celery import Celery

from bridge.broker import Outbox
from bridge.config import BridgeSettings, refuse_pickled_tasks
from bridge.errors import SettingsError
from bridge.handlers import registry
from bridge.redis import connect
from bridge.storage import Storage
from bridge.subscriber.checks import Finding, check_settings, refused_handlers
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.dispatch_loop import DispatchLoop
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.intake.intake import Intake
from bridge.subscriber.intake.writer import JournalWriter
from bridge.subscriber.maintenance.maintenance import Maintenance
from bridge.subscriber.maintenance.rescuer import Rescuer
from bridge.subscriber.monitoring.health import Health
from bridge.subscriber.monitoring.reporter import PresenceReporter
from bridge.subscriber.service import Service
from bridge.telemetry import Action, Counters, Liveness, log_fields

log = logging.getLogger(__name__)

#: Longest wait for the threads: each notices a stop within 2 s, or within the socket timeout when Redis hangs.
_STOP_TIMEOUT_S = 8.0
_TERMINATE_TIMEOUT_S = 2.0


class Subscriber:
    """Turns the events of the bus into tasks of *app*, in threads of its own, until stopped.

    Starting needs neither Redis nor the broker: it waits for them. Any number may run; each event is dispatched by
    one of those with the same group.

    Stopping, in this order and within one time limit:

    - all loops are told to stop, so that none starts another round;
    - monitoring ends, and deletes the presence of this subscriber, so that others do not wait for it;
    - dispatch finishes the batch that is under way, resigns as leader and leaves the group;
    - listening and catch-up end with what they have received, or are left to the next subscriber's catch-up;
    - the connections to broker and bus are closed, unless a thread still uses them. Such a thread is a daemon: it is
      left behind, and what it had read is dispatched by another subscriber.

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
        self._app = app
        self._settings = settings
        self._stop = threading.Event()
        liveness = Liveness()
        self._client = connect(settings)
        storage = Storage(self._client, settings)
        self._outbox = Outbox(app, settings)

        writer = JournalWriter(storage, self.counters, liveness)
        self._catch_up = CatchUp(storage, writer, self.counters)
        intake = Intake(storage, writer, self._catch_up, self.counters, liveness)

        consumer = storage.consumer(name)
        dispatcher = Dispatcher(storage, self._outbox, registry, self.counters, consumer)
        rescuer = Rescuer(storage, self._outbox, registry, self.counters)
        maintenance = Maintenance(storage, dispatcher, self._catch_up, rescuer, self.counters, consumer)
        self._dispatch = DispatchLoop(
            storage, consumer, dispatcher, maintenance, self._catch_up, self.counters, liveness
        )
        health = Health(app, settings, liveness, self._catch_up.caught_up, self._dispatch)
        self._monitoring = PresenceReporter(settings, self.counters, liveness, health, name)

        loops = {"bridge-dispatch": self._dispatch.run}
        if settings.enable_pubsub:
            loops |= {"bridge-listen": intake.run, "bridge-catch-up": self._catch_up.run}
        self._services = [
            Service(thread, loop, self._stop, self.counters, settings.group, name) for thread, loop in loops.items()
        ]
        #: Settings with which events are lost, found after the bus first answered.
        self._findings: list[Finding] = []

    @property
    def ready(self) -> threading.Event:
        """Set once this subscriber reads the journal and has brought what it missed into it."""
        return self._dispatch.ready

    def start(self) -> None:
        """Start the threads and return at once."""
        if not self._settings.enable_pubsub:
            self._catch_up.caught_up.set()
        for service in self._services:
            service.start()
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
        state = self._dispatch.waiting_for or ("ready" if self.ready.is_set() else "starting")
        return {
            "group": self._settings.group,
            "consumer": self.name,
            "state": state,
            "warnings": [str(finding) for finding in self._findings],
            **self.counters.snapshot(),
        }

    def _end(self, timeout_s: float) -> None:
        self._stop.set()
        self._dispatch.connected.set()
        deadline = time.monotonic() + timeout_s
        self._monitoring.stop(timeout_s)
        late = [service.name for service in self._services if not service.join(deadline - time.monotonic())]
        self._services = []
        if late:
            names = ", ".join(late)
            extra = log_fields(Action.STOP_TIMED_OUT, group=self._settings.group, consumer=self.name, component=names)
            log.warning("%s still waiting for Redis or the broker; left behind", names, extra=extra)
            return
        self._outbox.close()
        self._client.close()

    def _check(self) -> None:
        """Warn once of settings with which events are lost."""
        self._dispatch.connected.wait()
        if self._stop.is_set():
            return
        tasks = [self._app.tasks[handler.task_name] for handler in registry]
        self._findings = check_settings(self._settings, self._app, tasks)
        self._findings += refused_handlers(self._settings, registry.patterns)
        for finding in self._findings:
            extra = log_fields(Action.STARTUP_CHECK_FAILED, group=self._settings.group, setting=finding.setting)
            log.warning("%s", finding, extra=extra)

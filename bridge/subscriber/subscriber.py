"""The subscriber: intake, dispatch, maintenance and monitoring of one process, started and stopped as one."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from contextlib import suppress
from typing import Any

from celery import Celery
from redis.exceptions import RedisError

from bridge.broker import Outbox
from bridge.config import BridgeSettings, refuse_pickled_tasks
from bridge.errors import SettingsError
from bridge.handlers import Registry, registry
from bridge.redis import connect
from bridge.storage import Storage
from bridge.subscriber.agreement import disagreements
from bridge.subscriber.checks import check_settings, refused_handlers
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.dispatch_loop import DispatchLoop
from bridge.subscriber.finding import Finding
from bridge.subscriber.intake.catch_up import CatchUp
from bridge.subscriber.intake.intake import Intake
from bridge.subscriber.intake.writer import JournalWriter
from bridge.subscriber.journal_checks import check_prefixes
from bridge.subscriber.maintenance.maintenance import Maintenance
from bridge.subscriber.maintenance.rescuer import Rescuer
from bridge.subscriber.members import Members
from bridge.subscriber.monitoring.health import Health
from bridge.subscriber.monitoring.queue_monitor import QueueMonitor
from bridge.subscriber.monitoring.reporter import PresenceReporter
from bridge.subscriber.service import Service
from bridge.telemetry import Action, Counters, Liveness, log_fields

log = logging.getLogger(__name__)

#: Longest wait for the threads. Each notices a stop within 2 s, or within the socket timeout if Redis hangs.
_STOP_TIMEOUT_S = 8.0
_TERMINATE_TIMEOUT_S = 2.0


def consumer_name(node: str) -> str:
    """Return a name for a subscriber of this process that no other process has, nor has had.

    Containers can have the same host name, and all of them process 1.
    """
    return f"{node}:{os.getpid()}:{secrets.token_hex(3)}"


class Subscriber:
    """Turns the events of the bus into tasks of *app*, in background threads, until stopped.

    It starts without Redis and the broker, and waits for them. Any number of subscribers can run; each event is
    dispatched by one subscriber of a group.

    It stops in this order, within one time limit:

    1. All loops get the signal to stop, so that they start no further round.
    2. Monitoring reports that this subscriber stops. From now on entries are handed over to others first.
    3. Dispatch finishes the batch in progress and what was handed over, resigns as leader and leaves the group.
       Meanwhile, intake appends the messages that it has received, and a scan of the event keys ends early.
    4. The connections to the broker and the bus are closed, unless a thread still uses them. Such a thread is left
       running as a daemon. Another subscriber claims the entries that it has read.

    Arguments:
        app: The Celery application with the handlers.
        settings: Settings of the bridge.
        name: Name of this subscriber within its group; no other running process may use it.
        handlers: Those of ``@on_event``; a test may run several subscribers with different ones.

    Raises:
        SettingsError: ``bridge_routes`` or ``task_always_eager`` cannot work, the application has neither a name nor a
            ``bridge_group``, or a task is sent with pickle.
    """

    def __init__(self, app: Celery, settings: BridgeSettings, name: str, handlers: Registry = registry) -> None:
        if app.conf.task_always_eager:
            raise SettingsError("task_always_eager runs tasks where they are called; a subscriber needs a broker")
        if "group" not in settings.model_fields_set:
            raise SettingsError(
                "this Celery application has no name, and all without one would share a consumer group and take each "
                "other's events; name it, as in Celery('shop'), or set bridge_group"
            )
        app.finalize()  # a task that cannot be created must fail now, not with its first event
        refuse_pickled_tasks(app.tasks)
        self.name = name
        self.counters = Counters(pattern for handler in handlers for pattern in handler.patterns)
        self._app = app
        self._handlers = handlers
        self._settings = settings
        self._stop = threading.Event()
        liveness = Liveness()
        self._client = connect(settings)
        storage = Storage(self._client, settings)
        self._outbox = Outbox(app, settings)

        self._dead_letters = DeadLetterWriter(storage, self.counters)
        writer = JournalWriter(storage, self._dead_letters, self.counters, liveness)
        self._catch_up = CatchUp(storage, writer, self.counters)
        intake = Intake(storage, writer, self._catch_up, self.counters, liveness)

        consumer = storage.consumer(name)
        members = Members(storage, handlers, name)
        dispatcher = Dispatcher(storage, self._outbox, handlers, self._dead_letters, self.counters, consumer, members)
        rescuer = Rescuer(storage, self._outbox, handlers, self._dead_letters, self.counters, members)
        maintenance = Maintenance(
            storage, dispatcher, self._catch_up, rescuer, self._dead_letters, self.counters, members
        )
        self._dispatch = DispatchLoop(
            storage, members, dispatcher, maintenance, self._catch_up, self.counters, liveness
        )
        health = Health(app, settings, liveness, self._catch_up.caught_up, self._dispatch, self._dead_letters)
        self._monitoring = PresenceReporter(settings, self.counters, liveness, health, members)

        queues = QueueMonitor(app, storage, handlers, members)
        loops = {"bridge-dispatch": self._dispatch.run, "bridge-queues": queues.run}
        if settings.enable_pubsub:
            loops |= {"bridge-listen": intake.run, "bridge-catch-up": self._catch_up.run}
        self._services = [
            Service(thread, loop, self._stop, self.counters, settings.group, name) for thread, loop in loops.items()
        ]
        #: Settings that can lose events, found after Redis answered for the first time.
        self._findings: list[Finding] = []

    @property
    def ready(self) -> threading.Event:
        """Set once this subscriber reads the journal and has appended the events that it missed."""
        return self._dispatch.ready

    def start(self) -> None:
        """Start the threads and return at once."""
        if not self._settings.enable_pubsub:
            self._catch_up.caught_up.set()
        for service in self._services:
            service.start()
        self._monitoring.start()
        # stop() does not wait for this thread: it shares nothing with the others, and a server may answer slowly.
        threading.Thread(target=self._check, name="bridge-check", daemon=True).start()
        if self._outbox.one_redis:
            how = "exactly once, in one transaction with the journal"
        else:
            how = "at least once, through the broker"
        extra = log_fields(Action.SUBSCRIBER_STARTED, group=self._settings.group, consumer=self.name)
        url = self._settings.redacted_url
        text = "Subscriber %s started: group %s, bus %s; tasks are sent %s"
        log.info(text, self.name, self._settings.group, url, how, extra=extra)

    def stop(self) -> None:
        """Finish the batch in progress, leave the group and close the connections. May be called again."""
        self._end(_STOP_TIMEOUT_S)

    def terminate(self) -> None:
        """Stop without waiting long; another subscriber dispatches what was in progress."""
        self._end(_TERMINATE_TIMEOUT_S)

    def info(self) -> dict[str, Any]:
        """Return the section of ``celery inspect stats`` about this subscriber."""
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
            text = "Stopped without waiting for %s, which did not end in time: Redis or the broker may hang"
            log.warning(text, names, extra=extra)
            return
        with suppress(RedisError, OSError):  # what is lost then is logged
            self._dead_letters.close()
        self._outbox.close()
        self._client.close()

    def _disagreements(self) -> list[Finding]:
        """Compare the settings with those of the other groups, and the prefix with those of other buses.

        Its own group has just got these settings, or gets them now.
        """
        try:
            with connect(self._settings) as client:
                groups = Storage(client, self._settings).group_settings.all()
                overlaps = check_prefixes(client, self._settings)
        except (RedisError, OSError):
            return []  # the other checks report it
        groups.pop(self._settings.group, None)
        return [*disagreements(self._settings, groups), *overlaps]

    def _check(self) -> None:
        """Log a warning for each setting that can lose events, once."""
        self._dispatch.connected.wait()
        if self._stop.is_set():
            return
        tasks = [self._app.tasks[handler.task_name] for handler in self._handlers]
        self._findings = check_settings(self._settings, self._app, tasks)
        self._findings += refused_handlers(self._settings, self._handlers.patterns)
        self._findings += self._disagreements()
        for finding in self._findings:
            extra = log_fields(Action.STARTUP_CHECK_FAILED, group=self._settings.group, setting=finding.setting)
            log.warning("%s", finding, extra=extra)

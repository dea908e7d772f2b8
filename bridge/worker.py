"""The bridge in a Celery application: ``install()``, and the bootstep that runs a subscriber in each worker."""

from __future__ import annotations

import atexit
import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import click
from celery import Celery, _state, bootsteps
from celery.signals import (
    celeryd_init,
    task_revoked,
    task_unknown,
    worker_process_shutdown,
    worker_shutdown,
    worker_shutting_down,
)
from pydantic import SecretStr

from bridge.broker import Outbox, excluded_queues, take_queues
from bridge.bus import current_event, install_propagation, install_tracking
from bridge.config import (
    BridgeSettings,
    install_transport_defaults,
    installed_settings,
    is_fallback,
    refuse_pickled_tasks,
    refuse_unknown,
    remember_installed,
    set_transport_defaults,
)
from bridge.errors import SettingsError
from bridge.handlers import (
    IMPORT_ADVICE,
    SENT_HEADER,
    end_revoked,
    note_stopping,
    registry,
    share_progress,
    wait_for_ends,
)
from bridge.subscriber import Subscriber, WorkerReporter, consumer_name, missing_broker
from bridge.telemetry import Action, json_logs, log_fields, redact_worker_logs

log = logging.getLogger(__name__)


def install(app: Celery, **settings: Any) -> None:
    """Install the bridge in *app*: its workers run a subscriber, and its tasks pass on which event caused them.

    The handlers are those of ``@on_event``. A worker takes tasks from their queues, too, unless its own are chosen with
    ``-Q`` or ``task_queues``. Calling this again without settings, or with the same ones, changes nothing.

    If the broker is Redis, it is the bus, too, unless a setting gives another address. Its connections get the options
    ``socket_timeout``, ``socket_connect_timeout`` and ``socket_keepalive``, each unless the application sets it.

    Arguments:
        settings: Settings of the bridge, by the names in :class:`BridgeSettings`: ``redis_url="redis://localhost/1"``.
            ``BRIDGE_*`` variables take precedence over them. They take precedence over ``REDIS_URL`` and over
            ``bridge_*`` names in the configuration of *app*, from which all other settings are read.

    Raises:
        SettingsError: There is no setting of this name, or the bridge is already installed with other settings.
    """
    refuse_unknown(settings, BridgeSettings.model_fields, "", "bridge.install()")
    before = installed_settings(app)
    if before is None:
        remember_installed(app, settings)
        install_transport_defaults(app)
    elif settings and settings != before:
        names = ", ".join(sorted(name for name in settings | before if settings.get(name) != before.get(name)))
        raise SettingsError(
            f"bridge.install(): the bridge is already installed in application {app.main}, with another value of "
            f"{names}; install it once, with all settings"
        )
    install_propagation()
    install_tracking()
    json_logs.install(app, _wants_json_logs, current_event)
    task_revoked.connect(end_revoked, weak=False, dispatch_uid="bridge.end_revoked")
    task_unknown.connect(_report_discarded, weak=False, dispatch_uid="bridge.report_discarded")
    worker_shutting_down.connect(note_stopping, weak=False, dispatch_uid="bridge.note_stopping")
    for process_ends in (worker_shutdown, worker_process_shutdown):
        process_ends.connect(wait_for_ends, weak=False, dispatch_uid="bridge.wait_for_ends")
    celeryd_init.connect(_note_excluded, weak=False, dispatch_uid="bridge.note_excluded")
    if "flower" in sys.argv:
        # Flower has no hook for additional pages and no signal at its start. `celery -A APP flower` loads the
        # application before it builds Flower: this is the time to add them, and only the command line shows it.
        from bridge.flower import add_pages  # noqa: PLC0415  # only that process needs it

        add_pages()
    default: Celery | None = _state.default_app  # type: ignore[attr-defined]  # not in the stubs
    if default is None or is_fallback(default):
        # Celery's current application is thread-local. Without a default application, publish_event() in another thread
        # of a web server would use one without these settings.
        app.set_default()
    app.steps["worker"].update((SubscriberStep, QueueReportStep))
    options = app.user_options["worker"]
    if not any(option.name == "no_subscriber" for option in options):
        options.add(
            click.Option(
                ["--no-subscriber"],
                is_flag=True,
                default=False,
                help="Run tasks only, without a subscriber; other processes dispatch the events of the bus.",
            )
        )


def _report_discarded(message: Any, name: str, id: str, **_: Any) -> None:
    if SENT_HEADER not in message.headers:
        return  # not a task of a handler
    queue = message.delivery_info.get("routing_key")
    text = (
        "Task %s was discarded, because this worker takes tasks from queue %s and does not have handler %s. The task "
        "is sent again after redispatch_after_s. If the handler is of another application, give each application a "
        "separate queue with task_default_queue; otherwise update this worker"
    )
    log.warning(text, id, queue, name, extra=log_fields(Action.TASK_DISCARDED, task_id=id, handler=name, queue=queue))


def _note_excluded(instance: Any, options: dict[str, Any], **_: Any) -> None:
    # Celery itself forgets the queues of the option -X that it does not know yet.
    instance.bridge_excluded_queues = excluded_queues(options)


def _wants_json_logs(app: Celery) -> bool:
    try:
        return BridgeSettings.load(app).log_format == "json"
    except SettingsError:
        return False  # reported by what cannot work without settings


@contextmanager
def _no_traceback() -> Iterator[None]:
    """Have the command ``celery worker`` print the text of a :class:`SettingsError`, and no traceback."""
    try:
        yield
    except SettingsError as error:
        if click.get_current_context(silent=True) is None:
            raise  # the worker is part of another program
        raise click.ClickException(str(error)) from error


#: Most handlers that the banner of a worker shows.
_MAX_SHOWN = 30


class SubscriberStep(bootsteps.StartStopStep):
    """Runs a subscriber in the main process of a worker.

    It is a step of the worker, not of its consumer, which restarts whenever the connection to the broker is lost; the
    subscriber must continue to fill the journal then. It requires the pool, so that the pool forks before any thread
    of the subscriber exists, and stops after the subscriber.
    """

    label = "Bridge"
    requires = ("celery.worker.components:Pool", "celery.worker.components:Beat")

    def __init__(self, worker: Any, no_subscriber: bool = False, **options: Any) -> None:
        share_progress()  # this step is created before the pool, in a worker without a subscriber, too
        self._has_subscriber = not no_subscriber
        with _no_traceback():
            self._prepare(worker)
        atexit.register(wait_for_ends)  # Celery sends no signal when it ends by a cold shutdown
        super().__init__(worker, **options)

    def _prepare(self, worker: Any) -> None:
        """Read the settings, and what depends on them.

        Raises:
            SettingsError: A setting is invalid. It ends a worker without a subscriber, too.
        """
        app = worker.app
        if not self._has_subscriber:
            refuse_pickled_tasks(app.tasks)  # otherwise the subscriber does
        for name in list(app.conf):
            # `inspect conf`, and thus Flower, would show its password. With a namespace the name has a prefix.
            if str(name).lower().endswith("bridge_redis_url") and isinstance(app.conf[name], str):
                app.conf[name] = SecretStr(app.conf[name])
        self._settings = settings = BridgeSettings.load(app)
        if (missing := missing_broker(app, settings)) is not None:
            log.warning("%s", missing, extra=log_fields(Action.STARTUP_CHECK_FAILED, setting=missing.setting))
        set_transport_defaults(app)  # the application may have replaced the options after its configuration was read
        with closing(Outbox(app, settings)) as outbox:
            self._queues = {handler.task_name: outbox.queues([handler]) for handler in registry}
        excluded = getattr(worker, "bridge_excluded_queues", ())  # a worker that is no program has no options
        take_queues(app, set().union(*self._queues.values()), excluded)
        if settings.redaction:
            redact_worker_logs([app.tasks[handler.task_name] for handler in registry])

    def start(self, worker: Any) -> None:
        """Start the subscriber, after everything is imported."""
        if not getattr(worker, "quiet", True):  # below Celery's own banner, which has no place for more lines
            print(self._banner(), file=sys.__stdout__, flush=True)
        # Otherwise each garbage collection scans all of Celery, which takes a seventh of the time of a backlog.
        gc.freeze()
        super().start(worker)

    def _banner(self) -> str:
        settings, has_subscriber = self._settings, "yes" if self._has_subscriber else "no, it runs tasks only"
        lines = ["[bus]", f".> address:     {settings.redacted_url}", f".> prefix:      {settings.channel_prefix}"]
        lines += [f".> group:       {settings.group}", f".> subscriber:  {has_subscriber}", "", "[handlers]"]
        shown = list(registry)[:_MAX_SHOWN]
        width = max((len(handler.task_name) for handler in shown), default=0)
        for handler in shown:
            queues = ", ".join(sorted(self._queues[handler.task_name])) or "not known before an event"
            lines.append(f".> {handler.task_name:<{width}}  {', '.join(handler.patterns)} -> {queues}")
        if more := len(list(registry)) - len(shown):
            lines.append(f".> and {more} more, which bus routes lists")
        if not shown:
            lines.append(f".> none: {IMPORT_ADVICE}")
        return "\n".join(lines) + "\n"

    def create(self, worker: Any) -> Subscriber | None:  # type: ignore[override]  # None in the stubs, but Celery keeps the service
        """Return the service that :class:`StartStopStep` starts and stops, if there is one."""
        if not self._has_subscriber:
            return None
        with _no_traceback():
            return Subscriber(worker.app, self._settings, consumer_name(worker.hostname))

    def close(self, worker: Any) -> None:
        """Note that the worker stops: `celery control shutdown` sends it no signal."""
        note_stopping()

    def info(self, worker: Any) -> dict[str, Any]:  # type: ignore[override]  # None in the stubs
        """Return the section of ``celery inspect stats``."""
        return {"bridge": self.obj.info()} if self.obj else {}


class QueueReportStep(bootsteps.StartStopStep):
    """Reports which queues a worker takes tasks from. Like the subscriber, it has a thread, so it starts after it."""

    label = "Bridge queue report"
    requires = (SubscriberStep,)

    def create(self, worker: Any) -> WorkerReporter:  # type: ignore[override]  # None in the stubs, but Celery keeps the service
        """Return the service that :class:`StartStopStep` starts and stops."""
        app, name = worker.app, consumer_name(worker.hostname)
        return WorkerReporter(app, BridgeSettings.load(app), name, worker, registry)

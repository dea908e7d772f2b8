"""The bridge in a Celery application: ``install()``, and the bootstep that runs a subscriber in each worker."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Any

import click
from celery import Celery, _state, bootsteps
from celery.signals import task_revoked, worker_process_shutdown, worker_shutdown, worker_shutting_down
from pydantic import SecretStr

from bridge.bus import current_event, install_propagation, install_tracking
from bridge.config import BridgeSettings, refuse_pickled_tasks
from bridge.errors import SettingsError
from bridge.handlers import end_revoked, note_stopping, registry, share_progress, wait_for_ends
from bridge.subscriber import Subscriber, consumer_name
from bridge.telemetry import json_logs, redact_worker_logs


def install(app: Celery) -> None:
    """Install the bridge in *app*: its workers run a subscriber, and its tasks pass on which event caused them.

    The handlers are those of ``@on_event``. Settings are read from the environment and from the ``bridge_*`` names of
    the app's configuration. Calling this again changes nothing.
    """
    install_propagation()
    install_tracking()
    json_logs.install(app, _wants_json_logs, current_event)
    task_revoked.connect(end_revoked, weak=False, dispatch_uid="bridge.end_revoked")
    worker_shutting_down.connect(note_stopping, weak=False, dispatch_uid="bridge.note_stopping")
    for process_ends in (worker_shutdown, worker_process_shutdown):
        process_ends.connect(wait_for_ends, weak=False, dispatch_uid="bridge.wait_for_ends")
    if "flower" in sys.argv:
        # Flower has no hook for additional pages and no signal at its start. `celery -A APP flower` loads the
        # application before it builds Flower: this is the time to add them, and only the command line shows it.
        from bridge.flower import add_pages  # noqa: PLC0415  # only that process needs it

        add_pages()
    if _state.default_app is None:  # type: ignore[attr-defined]  # not in the stubs
        # Celery's current application is thread-local. Without a default application, publish_event() in another thread
        # of a web server would use one without these settings.
        app.set_default()
    app.steps["worker"].add(SubscriberStep)
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


def _wants_json_logs(app: Celery) -> bool:
    try:
        return BridgeSettings.load(app).log_format == "json"
    except SettingsError:
        return False  # reported by what cannot work without settings


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
        atexit.register(wait_for_ends)  # Celery sends no signal when it ends by a cold shutdown
        self._has_subscriber = not no_subscriber
        if no_subscriber:
            refuse_pickled_tasks(worker.app.tasks)  # otherwise the subscriber does
        conf = worker.app.conf
        for name in list(conf):
            # `inspect conf`, and thus Flower, would show its password. With a namespace the name has a prefix.
            if str(name).lower().endswith("bridge_redis_url") and isinstance(conf[name], str):
                conf[name] = SecretStr(conf[name])
        self._settings = BridgeSettings.load(worker.app)  # invalid settings end a worker without a subscriber, too
        if self._settings.redaction:
            redact_worker_logs([worker.app.tasks[handler.task_name] for handler in registry])
        super().__init__(worker, **options)

    def start(self, worker: Any) -> None:
        """Start the subscriber, after everything is imported."""
        # Otherwise each garbage collection scans all of Celery, which takes a seventh of the time of a backlog.
        gc.freeze()
        super().start(worker)

    def create(self, worker: Any) -> Subscriber | None:  # type: ignore[override]  # None in the stubs, but Celery keeps the service
        """Return the service that :class:`StartStopStep` starts and stops, if there is one."""
        return Subscriber(worker.app, self._settings, consumer_name(worker.hostname)) if self._has_subscriber else None

    def close(self, worker: Any) -> None:
        """Note that the worker stops: `celery control shutdown` sends it no signal."""
        note_stopping()

    def info(self, worker: Any) -> dict[str, Any]:  # type: ignore[override]  # None in the stubs
        """Return the section of ``celery inspect stats``."""
        return {"bridge": self.obj.info()} if self.obj else {}

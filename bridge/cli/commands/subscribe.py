"""``celery -A APP bus subscribe``: run a subscriber without a worker."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from collections.abc import Callable

import click
from celery.bin.base import LOG_LEVEL

from bridge.cli.connect import errors_as_cli_messages
from bridge.config import BridgeSettings
from bridge.subscriber import Subscriber, consumer_name
from bridge.telemetry import Action, log_fields

_STOPPING = (signal.SIGTERM, signal.SIGINT)


@click.command(short_help="Run a subscriber without a worker.")
@click.option("-l", "--loglevel", type=LOG_LEVEL, default="INFO", show_default=True, help="Logging level.")
@click.option(
    "--types", metavar="GLOB", multiple=True, help="Event types to listen to; can be repeated.  [default: all]"
)
@click.pass_context
def subscribe(ctx: click.Context, loglevel: int, types: tuple[str, ...]) -> None:
    """Run a subscriber, which turns events into tasks, without a worker.

    Use it to run subscribers and workers as separate processes. On SIGTERM or SIGINT it finishes the current batch and
    exits with status 0.

    With --types it receives broadcasts of these types only; other subscribers of its group must listen to the other
    types. Any subscriber of the group dispatches any event in the journal.

    \b
    Example:
      celery -A APP bus subscribe --loglevel WARNING
      celery -A APP bus subscribe --types 'dream.*' --types 'user.*'
      celery -A APP worker --no-subscriber
    """
    wait_for_signal = signals_noted()
    app = ctx.obj.app
    app.log.setup_logging_subsystem(loglevel=loglevel)
    with errors_as_cli_messages():
        app.loader.import_default_modules()
        explicit = {"listen_types": types} if types else {}
        settings = BridgeSettings.load(app, **explicit)
        subscriber = Subscriber(app, settings, consumer_name(f"subscribe@{socket.gethostname()}"))

    gc.freeze()  # imported modules are never garbage, see worker.py
    subscriber.start()
    wait_for_signal()
    extra = log_fields(Action.SUBSCRIBER_STOPPING, group=settings.group, consumer=subscriber.name)
    logging.getLogger(__name__).info("Subscriber %s is stopping", subscriber.name, extra=extra)
    subscriber.stop()


def signals_noted() -> Callable[[], None]:
    """Record SIGTERM and SIGINT from now on; return a function that waits until one has arrived.

    The signals arrive through a pipe, see :func:`signal.set_wakeup_fd`. Python runs a signal handler between two of its
    instructions: if a signal arrives just before the main thread blocks on a lock, an ``Event`` or a queue, the handler
    would wait for the thread, and the thread for the handler.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in _STOPPING:
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while os.read(reader, 1)[0] not in _STOPPING:
            pass  # a signal that user code handles

    return wait

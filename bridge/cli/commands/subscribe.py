"""``celery -A APP bus subscribe``: the subscriber without a worker around it."""

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
from bridge.subscriber import Subscriber
from bridge.telemetry import Action, log_fields

_STOPPING = (signal.SIGTERM, signal.SIGINT)


@click.command()
@click.option("-l", "--loglevel", type=LOG_LEVEL, default="INFO", show_default=True, help="Logging level.")
@click.option("--types", metavar="GLOB", multiple=True, help="Event types to listen to; may be repeated. Default: all.")
@click.pass_context
def subscribe(ctx: click.Context, loglevel: int, types: tuple[str, ...]) -> None:
    """Turn events into tasks, and run none.

    For deployments that keep subscribers and task workers apart. Ends with status 0 on SIGTERM or SIGINT, after
    the batch under way.

    With --types it takes in the broadcasts of these types only; others of its group must listen to the rest. What
    is in the journal, any of them dispatches.

    \b
    Example:
      celery -A bridge bus subscribe --loglevel WARNING
      celery -A bridge bus subscribe --types 'dream.*' --types 'user.*'
      celery -A bridge worker --no-subscriber
    """
    wait_for_signal = signals_noted()
    app = ctx.obj.app
    app.log.setup_logging_subsystem(loglevel=loglevel)
    with errors_as_cli_messages():
        app.loader.import_default_modules()
        explicit = {"listen_types": types} if types else {}
        settings = BridgeSettings.load(app, **explicit)
        subscriber = Subscriber(app, settings, name=f"subscribe@{socket.gethostname()}:{os.getpid()}")

    gc.freeze()  # what was imported is no garbage, see worker.py
    subscriber.start()
    wait_for_signal()
    extra = log_fields(Action.SUBSCRIBER_STOPPING, group=settings.group, consumer=subscriber.name)
    logging.getLogger(__name__).info("stopping", extra=extra)
    subscriber.stop()


def signals_noted() -> Callable[[], None]:
    """Note SIGTERM and SIGINT from now on; return a function that waits until one has come.

    By the pipe that :func:`signal.set_wakeup_fd` is for. Python runs a handler between two of its instructions: one
    that comes just before the main thread blocks, on a lock, an ``Event`` or a queue, would wait for the thread to go
    on, and the thread for the handler.
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

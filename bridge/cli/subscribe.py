"""``celery -A APP bus subscribe``: the subscriber without a worker around it."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading

import click
from celery.bin.base import LOG_LEVEL

from bridge.cli.connect import told
from bridge.logs import about
from bridge.settings import BridgeSettings
from bridge.subscriber import Subscriber


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
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    app = ctx.obj.app
    app.log.setup_logging_subsystem(loglevel=loglevel)
    with told():
        app.loader.import_default_modules()
        settings = BridgeSettings.load(app, **({"types": types} if types else {}))
        subscriber = Subscriber(app, settings, name=f"subscribe@{socket.gethostname()}:{os.getpid()}")

    gc.freeze()  # what was imported is no garbage, see worker.py
    subscriber.start()
    stop.wait()
    extra = about("subscriber_stopping", group=settings.group, consumer=subscriber.name)
    logging.getLogger(__name__).info("stopping", extra=extra)
    subscriber.stop()

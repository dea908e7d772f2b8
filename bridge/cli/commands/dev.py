"""``celery -A APP bus dev``: Redis, a worker and Flower in one terminal, for development."""

from __future__ import annotations

import importlib.util
import json
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import click
from celery import Celery

from bridge.broker import Outbox
from bridge.cli import output
from bridge.cli.application import app_name, no_handlers_text
from bridge.cli.commands.tail import until_interrupted
from bridge.cli.connect import errors_as_cli_messages, import_handlers, open_storage
from bridge.cli.dev_redis import DevRedis, redis_for
from bridge.cli.follow import Follower
from bridge.cli.processes import Children
from bridge.cli.table import Styled
from bridge.config import BridgeSettings
from bridge.errors import AddressMissing
from bridge.events import example_of, is_literal
from bridge.handlers import registry
from bridge.operations import NoExample, example_payload, models_of
from bridge.storage import PresenceStore

#: All addresses that the application might use are set to the one Redis.
_ADDRESSES = ("REDIS_URL", "BRIDGE_REDIS_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
#: The Redis for an application without an address of the bus.
_USUAL_URL = "redis://localhost:6379/0"
_LEVEL = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False)


@click.command(short_help="Run Redis, a worker and Flower for development.")
@click.option(
    "-c", "--concurrency", type=click.IntRange(1), default=2, show_default=True, help="Number of concurrent tasks."
)
@click.option("-l", "--loglevel", type=_LEVEL, default="WARNING", show_default=True, help="Log level of the worker.")
@click.option(
    "--flower-port",
    type=click.IntRange(1, 65535),
    default=5555,
    show_default=True,
    help="Port of Flower; if it is in use, a free port is chosen.",
)
@click.option("--no-flower", is_flag=True, help="Do not start Flower.")
@click.pass_context
def dev(ctx: click.Context, /, concurrency: int, loglevel: str, flower_port: int, no_flower: bool) -> None:
    """Run Redis, a worker and Flower for development, and show events as they are published.

    Uses the Redis of this application if that is on this machine, and starts one there if none is running; it is
    deleted with its data at the end. If the application is configured for a Redis on another machine, a temporary one
    takes its place, unless REDIS_URL names the other one. The worker runs this application and consumes all queues of
    its handlers; its warnings are shown. Flower is started if it is installed. Restart the command after you change
    the code. Ctrl-C stops everything.

    \b
    Example:
      celery -A APP bus dev
      REDIS_URL=redis://localhost:6379/5 celery -A APP bus dev --loglevel INFO --no-flower
    """
    app = ctx.obj.app
    name = app_name(app)
    if name is None:
        raise click.UsageError("name the application: celery -A MODULE bus dev")
    with until_interrupted(), errors_as_cli_messages(), _redis(app) as redis, Children() as children:
        output.note(_title("redis"), redis.description)
        settings = BridgeSettings.load(app, redis_url=redis.url)
        environment = dict.fromkeys(_ADDRESSES, redis.url)
        with open_storage(settings) as storage:
            celery = [sys.executable, "-m", "celery", "-A", name]
            queues = _queues(app, settings)
            worker = ["-q", "worker", "-n", "dev@%h", "-l", loglevel, "-c", str(concurrency), "-E", "--without-mingle"]
            children.start("worker", [*celery, *worker, "-Q", ",".join(queues)], environment | _QUIET, shown=True)
            output.note(_title("worker"), f"{name}, queues {', '.join(queues)}")
            if not no_flower and importlib.util.find_spec("flower") is not None:
                port = _free_port(flower_port)
                flower = ["flower", "--address=127.0.0.1", f"--port={port}"]
                children.start("flower", [*celery, *flower], environment, shown=False)
                output.note(_title("flower"), f"http://127.0.0.1:{port}")
            _print_example(app, name, redis)
            Follower(storage, (), as_json=False).follow(tick=_Watch(children, storage.presence).tick)


@contextmanager
def _redis(app: Celery) -> Iterator[DevRedis]:
    """Yield a Redis for *app*, which need not say where the bus is: all its processes get the address from here."""
    import_handlers(app)
    try:
        settings, has_address = BridgeSettings.load(app), True
    except AddressMissing:
        settings, has_address = BridgeSettings.load(app, redis_url=_USUAL_URL), False
    with redis_for(settings) as redis:
        yield redis._replace(is_of_application=redis.is_of_application and has_address)


#: Suppresses the warning about a worker that runs as root, which is common in a container.
_QUIET = {"PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges"}


class _Watch:
    """Watches the children while events are shown."""

    def __init__(self, children: Children, presence: PresenceStore) -> None:
        self._children = children
        self._presence = presence
        self._ready = False

    def tick(self) -> bool:
        """Report children that have ended, and when the worker is ready.

        Raises:
            click.ClickException: The worker has ended.
        """
        for child in [child for child in self._children.running if child.status is not None]:
            child.report_end()
            if child.name == "worker":
                raise click.ClickException("the worker has ended, so there is nothing left to run")
            self._children.running.remove(child)
        if not self._ready:
            self._ready = any(subscriber.ready for subscriber in self._presence.all())
            if self._ready:
                output.note(Styled("the worker is ready", "green"))
        return True


def _queues(app: Celery, settings: BridgeSettings) -> list[str]:
    with closing(Outbox(app, settings)) as outbox:
        return sorted(outbox.queues(registry) | set(app.amqp.queues))


def _print_example(app: Celery, name: str, redis: DevRedis) -> None:
    types = [pattern for handler in registry for pattern in handler.patterns]
    types.sort(key=lambda pattern: not is_literal(pattern))
    where = "" if redis.is_of_application else f"BRIDGE_REDIS_URL={redis.url} "
    command = f"{where}{shlex.join(['celery', '-A', name, 'bus', 'publish'])}"
    if types:
        event_type = example_of(types[0])
        try:
            payload = shlex.quote(json.dumps(example_payload(models_of(app, event_type), event_type)))
            output.note("To publish an event, run in another terminal:")
        except NoExample as error:
            payload = "JSON"
            output.note(f"To publish an event, run in another terminal, with a payload in place of JSON ({error}):")
        output.note(f"  {command} {event_type} {payload}")
    else:
        output.note(no_handlers_text())
    output.note("Ctrl-C stops everything. Events:")


def _title(text: str) -> Styled:
    return Styled(f"{text:<8}", "bold")


def _free_port(port: int) -> int:
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a socket that was closed a moment ago does not count
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise click.ClickException("no free port for Flower; use --no-flower")

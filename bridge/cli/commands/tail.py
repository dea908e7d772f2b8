"""``celery -A APP bus tail``: show events as they are published."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from bridge.cli import output
from bridge.cli.connect import open_bus
from bridge.cli.follow import Follower
from bridge.cli.options import When, glob, json_option, moment


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, type=glob)
@click.option(
    "--since",
    type=moment,
    metavar="TIME",
    help="Start with past events: 90s, 30m, 2h or 7d (ago), or 2026-11-24T10:00 (UTC).",
)
@json_option
@click.pass_context
def tail(ctx: click.Context, /, patterns: tuple[str, ...], since: When | None, as_json: bool) -> None:
    """Show events as they are published.

    Shows events whose type matches one of the patterns (default: all), one per line, with the start of the payload;
    --json prints complete events. The command listens on pub/sub, so it does not take events from subscribers. Times
    are in UTC. Invalid messages and gaps after a lost connection are reported on standard error. Ctrl-C stops it.

    \b
    Example:
      celery -A APP bus tail
      celery -A APP bus tail 'dream.*' --since 10m
      celery -A APP bus tail --json | jq -r .payload.text
    """
    with until_interrupted(), open_bus(ctx.obj.app) as storage:
        if not storage.settings.enable_pubsub:
            output.note(
                "this application does not broadcast (bridge_enable_pubsub is off): shown are events of other programs"
            )
        Follower(storage, patterns, as_json).follow(since and since.ms)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Run a block until SIGINT, SIGTERM or SIGHUP, or until nobody reads its output; none of them is an error."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt  # not a flag: it must also interrupt a line that waits for its reader

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        output.give_up_output()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

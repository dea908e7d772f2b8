"""``celery -A APP bus tail``: events as they come."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from bridge.cli import output
from bridge.cli.connect import open_bus
from bridge.cli.follow import Follower
from bridge.cli.options import GLOB, MOMENT, When, json_option


@click.command()
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1, type=GLOB)
@click.option("--since", type=MOMENT, help="Begin with the journal: 90s, 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC).")
@json_option
@click.pass_context
def tail(ctx: click.Context, /, patterns: tuple[str, ...], since: When | None, as_json: bool) -> None:
    """Show events as they come.

    Those whose type matches one of the patterns, or all; a line each, with the beginning of the payload, or with
    --json the whole event. Takes them from pub/sub, so nothing is taken from anybody; times are UTC. Says on standard
    error what is no event, and when the connection was lost for a while. Ctrl-C ends it.

    \b
    Example:
      celery -A bridge bus tail
      celery -A bridge bus tail 'dream.*' --since 10m
      celery -A bridge bus tail --json | jq -r .payload.text
    """
    with until_interrupted(), open_bus(ctx.obj.app) as storage:
        if not storage.settings.enable_pubsub:
            output.note("this application broadcasts nothing (bridge_enable_pubsub is off): only others are heard")
        Follower(storage, patterns, as_json).follow(since and since.ms)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Run a block until SIGINT, SIGTERM or SIGHUP, or until nobody reads its output: all of them are a good end."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt  # not a flag: a line that waits for its reader must end too

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        output.give_up_output()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

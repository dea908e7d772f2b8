"""``celery -A APP bus replay``: replay events of the journal. ``bus dead retry`` shares its options and its output."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from bridge.cli import output
from bridge.cli.connect import Unreachable, open_bus
from bridge.cli.options import (
    all_option,
    event_filters,
    filters_as_given,
    handler_named,
    json_option,
    options,
    selection_of,
)
from bridge.errors import BridgeError, BusUnavailable
from bridge.operations import JournalSource, Progress, Replay, ReplayItem

#: Events that a dry run lists; further ones are counted.
_SHOWN = 20

replay_options = options(
    click.option("--name", help="Name of the replay; the same name resumes it.  [default: generated]"),
    click.option(
        "--rate", type=click.IntRange(1), default=100, show_default=True, help="Maximum number of events per second."
    ),
    click.option("--dry-run", is_flag=True, help="Show what would be replayed, without changing anything."),
)


@click.command(short_help="Run handlers again on past events.")
@event_filters
@all_option
@replay_options
@json_option
@click.pass_context
def replay(ctx: click.Context, /, everything: bool, name: str | None, **given: Any) -> None:
    """Run the handlers of this application again on events of the journal.

    The journal retains events for bridge_event_ttl_s; --since and --until refer to the time when an event entered it.
    Tasks run again even if they succeeded before, and find the name of the replay in event.metadata["replay"]. Events
    that they publish run their handlers, too. With --handler only that task runs, on the events that its patterns
    match.

    \b
    Example:
      celery -A APP bus replay --since 2h --type 'dream.*' --dry-run
      celery -A APP bus replay --since 2h --type 'dream.*' --name after-the-fix
    """
    how = {key: given.pop(key) for key in ("rate", "dry_run", "as_json")}
    filters = {"from": "journal"} | filters_as_given(given, everything)
    with open_bus(ctx.obj.app) as storage:
        handler = None if given["handler"] is None else handler_named(given["handler"])
        selection = selection_of(given | {"handler": None})  # the handler to run, not a filter
        source = (
            JournalSource(storage, selection)
            if handler is None
            else JournalSource(storage, selection, handler.task_name, handler.matches)
        )
        name = name or new_name()
        perform(Replay(storage, source, name, filters), name, **how)


def new_name() -> str:
    """Return a name for a replay without one."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def perform(replay: Replay, name: str, *, rate: float, dry_run: bool, as_json: bool) -> None:
    """Run a replay and print its result, or show what it would replay."""
    if dry_run:
        _preview(replay.remaining(), as_json)
        return
    progress = replay.progress()
    if progress is not None and progress.finished:
        output.note(f"replay {name} is already finished; use another --name to run it again.")
    else:
        progress = _run(replay, progress, name, rate)
    if as_json:
        output.as_json({"name": name} | asdict(progress))
    else:
        left = f", {progress.skipped} skipped: they cannot be replayed, see --dry-run" if progress.skipped else ""
        output.line(f"replay {name}: {progress.replayed} replayed{left}")


def _run(replay: Replay, before: Progress | None, name: str, rate: float) -> Progress:
    begun_ms = _ms(before.cursor) if before else None
    progress = None
    output.note(f"replay {name}: {'resuming' if before else 'searching for the first event'}")
    try:
        with output.progress(f"replay {name}", total=1.0) as report:
            for progress in replay.run(rate):
                if begun_ms is None:
                    begun_ms = _ms(progress.cursor)
                whole_ms = _ms(progress.until) - begun_ms
                report((_ms(progress.cursor) - begun_ms) / whole_ms if whole_ms else 1.0, f"{progress.replayed} so far")
    except KeyboardInterrupt:
        output.note(f"interrupted; the same command with --name {name} resumes it")
        raise SystemExit(130) from None
    except BusUnavailable as error:
        raise Unreachable(f"{error} The same command with --name {name} resumes it.") from error
    if progress is None:
        raise BridgeError(f"another process has just finished replay {name!r}")
    return progress


def _ms(cursor: str) -> int:
    """Return the time in a stream id as XRANGE takes it, by which the progress of a replay is measured."""
    found = re.match(r"\(?(\d+)", cursor)
    return int(found[1]) if found else 0


def _preview(found: Iterator[ReplayItem], as_json: bool) -> None:
    problems: Counter[str] = Counter()
    count = 0
    output.note("searching; nothing is changed")  # there may be a million events before the first match
    for one in found:
        if as_json:
            output.as_json({"id": one.event_id, "type": one.event_type, "handler": one.handler, "problem": one.problem})
        elif one.event is None:
            problems[one.problem] += 1
        else:
            count += 1
            if count <= _SHOWN:
                output.line(one.event_type, "  ", one.event_id, "  ", one.handler or "all handlers")
    if not as_json:
        output.line(f"{count} would be replayed" + (f", the first {_SHOWN} are shown" if count > _SHOWN else ""))
        for problem, times in problems.most_common(_SHOWN):
            output.line(f"{times} cannot be replayed: ", problem)

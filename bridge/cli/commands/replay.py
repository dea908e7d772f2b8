"""``celery -A APP bus replay``: replay events of the journal. ``bus dead retry`` shares its options and its output."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import click
from celery import Celery

from bridge.cli import output
from bridge.cli.connect import Unreachable, open_bus
from bridge.cli.ids import full_event_ids
from bridge.cli.options import (
    all_option,
    event_filters,
    filters_as_given,
    handler_named,
    json_option,
    options,
    selection_of,
    yes_option,
)
from bridge.errors import BridgeError, BusUnavailable
from bridge.operations import Impact, ImpactReader, JournalSource, Progress, Replay, ReplayItem
from bridge.storage import Storage

#: Events that a dry run lists; further ones are counted.
_SHOWN = 20
#: How long the question is prepared. A dry run counts everything.
_COUNTING_S = 5.0

replay_options = options(
    click.option("--name", help="Name of the replay; the same name resumes it.  [default: generated]"),
    click.option(
        "--rate", type=click.IntRange(1), default=100, show_default=True, help="Maximum number of events per second."
    ),
    click.option("--dry-run", is_flag=True, help="Show what would run, without changing anything."),
    yes_option,
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
    Tasks run again even if they succeeded before, and find the name of the replay in event.metadata["replay"]. What
    they publish are new events with new ids, which run their handlers, too. With --handler only that task runs, on the
    events that its patterns match.

    The command shows which tasks would run, how many of them had succeeded, and what followed from them the last time,
    and asks for confirmation. --yes skips that, and is required where there is no terminal. A replay that is resumed by
    its name was confirmed when it started.

    \b
    Example:
      celery -A APP bus replay --since 2h --type 'dream.*' --dry-run
      celery -A APP bus replay --since 2h --type 'dream.*' --name after-the-fix
    """
    how = {key: given.pop(key) for key in ("rate", "dry_run", "yes", "as_json")}
    filters = {"from": "journal"} | filters_as_given(given, everything)
    with open_bus(ctx.obj.app) as storage:
        if given["id"]:
            given["id"] = full_event_ids(storage, given["id"])
        handler = None if given["handler"] is None else handler_named(given["handler"])
        selection = selection_of(given | {"handler": None})  # the handler to run, not a filter
        source = (
            JournalSource(storage, selection)
            if handler is None
            else JournalSource(storage, selection, handler.task_name, handler.matches)
        )
        name = name or new_name()
        ReplayCommand(ctx.obj.app, storage, Replay(storage, source, name, filters), name).perform(**how)


def new_name() -> str:
    """Return a name for a replay without one."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class ReplayCommand:
    """A command that runs a replay, or shows what it would do.

    Arguments:
        app: Its handlers are imported.
        storage: The bus, as the group of the application sees it.
        name: The name of the replay.
        verb, what, done: How the output calls what it does, and with what.
    """

    app: Celery
    storage: Storage
    replay: Replay
    name: str
    verb: str = "Replay"
    what: str = "event"
    done: str = "replayed"

    def perform(self, *, rate: float, dry_run: bool, yes: bool, as_json: bool) -> None:
        """Run the replay, after confirmation unless *yes*, and print the result; or show what it would do."""
        if dry_run:
            self._preview(as_json)
            return
        progress = self.replay.progress()
        if progress is None and not yes:
            self._confirm()
        if progress is not None and progress.finished:
            output.note(f"replay {self.name} is already finished; use another --name to run it again.")
        else:
            progress = self._run(progress, rate)
        if as_json:
            output.as_json({"name": self.name} | asdict(progress))
        else:
            left = (
                f", {progress.skipped} skipped: they cannot be {self.done}, see --dry-run" if progress.skipped else ""
            )
            output.line(f"replay {self.name}: {progress.replayed} {self.done}{left}")

    def _confirm(self) -> None:
        output.note("counting what would run")
        reader = ImpactReader(self.app, self.storage, _COUNTING_S)
        problems = sum(item.event is None for item, _ in reader.read(self.replay.remaining()))
        impact = reader.impact
        if not impact.events and impact.complete:
            return  # nothing would run; the replay reports why
        _explain(impact, output.note)
        if problems:
            output.note(f"{problems} cannot be {self.done}, see --dry-run")
        least = "" if impact.complete else "at least "
        output.ask(f"{self.verb} {least}{impact.events:,} {self.what}{'' if impact.events == 1 else 's'}?", yes=False)

    def _preview(self, as_json: bool) -> None:
        reader = ImpactReader(self.app, self.storage)
        problems: Counter[str] = Counter()
        output.note("searching; nothing is changed")  # there may be a million events before the first match
        for item, tasks in reader.read(self.replay.remaining()):
            if as_json:
                output.as_json(_row(item, tasks))
            elif item.event is None:
                problems[item.problem] += 1
            elif reader.impact.events <= _SHOWN:
                output.line(item.event_type, "  ", item.event_id, "  ", item.handler or "all handlers")
        count = reader.impact.events
        if not as_json:
            shown = f", the first {_SHOWN} are shown" if count > _SHOWN else ""
            output.line(f"{count} would be {self.done}{shown}")
            for problem, times in problems.most_common(_SHOWN):
                output.line(f"{times} cannot be {self.done}: ", problem)
        if count:
            _explain(reader.impact, output.note if as_json else output.line)

    def _run(self, before: Progress | None, rate: float) -> Progress:
        begun_ms = _ms(before.cursor) if before else None
        progress = None
        what = f"replay {self.name}"
        output.note(f"{what}: {'resuming' if before else 'searching for the first event'}")
        try:
            with output.progress(what, total=1.0) as report:
                for progress in self.replay.run(rate):
                    if begun_ms is None:
                        begun_ms = _ms(progress.cursor)
                    whole_ms = _ms(progress.until) - begun_ms
                    part = (_ms(progress.cursor) - begun_ms) / whole_ms if whole_ms else 1.0
                    report(part, f"{progress.replayed} so far")
        except KeyboardInterrupt:
            output.note(f"interrupted; the same command with --name {self.name} resumes it")
            raise SystemExit(130) from None
        except BusUnavailable as error:
            raise Unreachable(f"{error} The same command with --name {self.name} resumes it.") from error
        if progress is None:
            raise BridgeError(f"another process has just finished replay {self.name!r}")
        return progress


def _explain(impact: Impact, say: Callable[[str], None]) -> None:
    for sentence in impact.sentences():
        say(sentence)


def _row(item: ReplayItem, tasks: dict[str, bool]) -> dict[str, Any]:
    """Return what a dry run prints of one event as JSON."""
    runs = [{"handler": handler, "succeeded": succeeded} for handler, succeeded in tasks.items()]
    row = {"id": item.event_id, "type": item.event_type, "handler": item.handler, "problem": item.problem}
    return row | {"tasks": runs}


def _ms(cursor: str) -> int:
    """Return the time in a stream id as XRANGE takes it, by which the progress of a replay is measured."""
    found = re.match(r"\(?(\d+)", cursor)
    return int(found[1]) if found else 0

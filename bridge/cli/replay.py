"""``celery -A APP bus replay``: events of the journal once more. And what it shares with ``bus dead replay``."""

from __future__ import annotations

import difflib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import click
from celery import Celery
from redis import Redis
from redis.exceptions import RedisError

from bridge.connection import connect
from bridge.dead_letters import Selection
from bridge.errors import BridgeError, BusUnavailable
from bridge.handlers import Handler, registry
from bridge.patterns import compile_pattern
from bridge.replay import Progress, Replay
from bridge.settings import BridgeSettings
from bridge.sources import Candidate, JournalSource

F = TypeVar("F", bound=Callable[..., Any])

_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
#: Events that a dry run shows; it counts the others.
_SHOWN = 20
#: Between two lines that say how far a replay has come.
_REPORT_S = 5.0


class When(NamedTuple):
    """A moment, and how it was written: ``2h`` is another moment each time."""

    text: str
    ms: int


class _Moment(click.ParamType[When]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> When:
        try:
            if ago := _AGO.fullmatch(value):
                moment_s = time.time() - float(ago[1]) * _UNIT_S[ago[2]]
            else:
                moment = datetime.fromisoformat(value)
                moment_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            moment_s = 0
        if moment_s < 1:
            text = "is no time: write how long ago (90s, 30m, 2h, 7d) or 2026-11-24T10:00, UTC unless it has an offset"
            self.fail(f"{value!r} {text}", param, ctx)
        return When(value, int(moment_s * 1000))


class _Glob(click.ParamType[str]):
    name = "glob"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            compile_pattern(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


GLOB = _Glob()


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return the options of a command as one decorator, in the order of its help."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


event_filters = options(
    click.option("--since", type=_Moment(), help="Not before: 90s, 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC)."),
    click.option("--until", type=_Moment(), help="Before; written like --since."),
    click.option("--type", type=GLOB, help="Event type, or a glob over it, e.g. 'dream.*'."),
    click.option("--id", multiple=True, help="Id of an event; may be repeated."),
    click.option("--handler", help="Name of a handler task, e.g. tasks.dreams.analyse."),
)
replay_options = options(
    click.option("--all", "everything", is_flag=True, help="No filter: all there is."),
    click.option("--name", help="Name of the replay. The same name again goes on where it stopped."),
    click.option("--rate", type=click.IntRange(1), default=100, show_default=True, help="Most events per second."),
    click.option("--dry-run", is_flag=True, help="Show what would be replayed; change nothing."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")


@click.command()
@event_filters
@replay_options
@json_option
@click.pass_context
def replay(ctx: click.Context, /, everything: bool, name: str | None, **asked: Any) -> None:
    """Give events of the journal to the handlers of this application once more.

    As far back as the journal goes (bridge_event_ttl_s); times are those at which it took the events. Tasks of a
    replay run although those of the first time are done, and find its name in event.metadata["replay"]. With
    --handler only that task runs, on the events that its patterns match.

    \b
    Example:
      celery -A bridge bus replay --since 2h --type 'dream.*' --dry-run
      celery -A bridge bus replay --since 2h --type 'dream.*' --name after-the-fix
    """
    how = {key: asked.pop(key) for key in ("rate", "dry_run", "as_json")}
    with connected(ctx.obj.app) as (client, settings):
        filters = {"from": "journal"} | as_asked(asked, everything)
        handler = None if asked["handler"] is None else handler_named(asked["handler"])
        selection = selection_of(asked | {"handler": None})  # which it is for, not which it comes from
        source = (
            JournalSource(client, settings, selection)
            if handler is None
            else JournalSource(client, settings, selection, handler.task_name, handler.matches)
        )
        name = name or new_name()
        perform(Replay(client, settings, source, name, filters), name, **how)


@contextmanager
def connected(app: Celery) -> Iterator[tuple[Redis, BridgeSettings]]:
    """Lend a client for the bus of *app*, its handlers imported; errors become lines for a person."""
    app.loader.import_default_modules()
    try:
        settings = BridgeSettings.load(app)
        with connect(settings) as client:
            yield client, settings
    except BridgeError as error:
        raise click.ClickException(str(error)) from error
    except RedisError as error:
        raise click.ClickException(f"Redis at {settings.redacted_url} says {error}") from error


def selection_of(asked: Mapping[str, Any]) -> Selection:
    """Return the selection that the filters among the options of a command ask for."""
    return Selection(
        since_ms=asked["since"] and asked["since"].ms,
        until_ms=asked["until"] and asked["until"].ms,
        reason=asked.get("reason"),
        event_type=asked["type"],
        handler=asked["handler"],
        ids=frozenset(asked["id"]),
    )


def as_asked(asked: Mapping[str, Any], everything: bool) -> dict[str, Any]:
    """Return the filters among the options of a command, as they were written.

    Raises:
        click.UsageError: There is none, and not --all either.
    """
    given = {key: value for key, value in asked.items() if value}
    if bool(given) == everything:
        raise click.UsageError(
            "--all goes without filters" if everything else "say which: with filters such as --since or --id, or --all"
        )
    return {key: value.text if isinstance(value, When) else value for key, value in given.items()}


def handler_named(name: str) -> Handler:
    """Return the handler of that task name.

    Raises:
        BridgeError: There is none; the text proposes one.
    """
    handlers = {handler.task_name: handler for handler in registry}
    if name not in handlers:
        guess = difflib.get_close_matches(name, handlers, n=1)
        hint = f"did you mean {guess[0]}?" if guess else f"there are {', '.join(sorted(handlers)) or 'none'}"
        raise BridgeError(f"there is no handler {name}; {hint}")
    return handlers[name]


def new_name() -> str:
    """Return a name for a replay that nobody named."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def perform(replay: Replay, name: str, *, rate: float, dry_run: bool, as_json: bool) -> None:
    """Run a replay, or show what it would do, and say what came of it."""
    if dry_run:
        _preview(replay.remaining(), as_json)
        return
    progress = replay.progress()
    if progress is not None and progress.finished:
        click.echo(f"replay {name} has finished before; nothing to do. Another --name does it again.", err=True)
    else:
        progress = _run(replay, name, rate)
    if as_json:
        click.echo(json.dumps({"name": name} | asdict(progress)))
    else:
        left = f", {progress.skipped} left: they cannot be replayed, --dry-run says why" if progress.skipped else ""
        click.echo(f"replay {name}: {progress.replayed} replayed{left}")


def _run(replay: Replay, name: str, rate: float) -> Progress:
    progress, said_s = None, -_REPORT_S
    try:
        for progress in replay.run(rate):
            if not progress.finished and time.monotonic() > said_s + _REPORT_S:
                said_s = time.monotonic()
                click.echo(f"replay {name}: {progress.replayed} so far", err=True)
    except KeyboardInterrupt:
        click.echo(f"interrupted; the same command with --name {name} goes on", err=True)
        raise SystemExit(130) from None
    except BusUnavailable as error:
        raise click.ClickException(f"{error} The same command with --name {name} goes on.") from error
    if progress is None:
        raise BridgeError(f"another process has just finished replay {name!r}")
    return progress


def _preview(found: Iterator[Candidate], as_json: bool) -> None:
    problems: Counter[str] = Counter()
    count = 0
    for one in found:
        shown = {"id": one.event_id, "type": one.event_type, "handler": one.handler, "problem": one.problem}
        if as_json:
            click.echo(json.dumps(shown))
        elif one.event is None:
            problems[one.problem] += 1
        else:
            count += 1
            if count <= _SHOWN:
                click.echo(f"{printable(one.event_type)}  {printable(one.event_id)}  {one.handler or 'all handlers'}")
    if not as_json:
        click.echo(f"{count} would be replayed" + (f", the first {_SHOWN} are shown" if count > _SHOWN else ""))
        for problem, times in problems.most_common(_SHOWN):
            click.echo(f"{times} cannot be: {printable(problem)}")


def printable(text: str) -> str:
    """Return *text* without what a terminal would take for a command: it came from anybody."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

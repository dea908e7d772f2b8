"""``celery -A APP bus dead ...``: look at dead letters, replay them, drop them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click

from bridge.cli.replay import (
    GLOB,
    as_asked,
    connected,
    event_filters,
    handler_named,
    json_option,
    new_name,
    options,
    perform,
    printable,
    replay_options,
    selection_of,
)
from bridge.dead_letters import DeadLetter, DeadLetters, Selection
from bridge.handlers import registry
from bridge.replay import Replay
from bridge.sources import DeadSource

#: Letters removed in one step; the server looks at each of them.
_DROP_LETTERS = 100
#: Widest column of the table.
_WIDTH = 40

letter_filters = options(
    click.option("--reason", type=GLOB, help="Reason, or a glob over it, e.g. failure."),
    event_filters,
)


@click.group()
def dead() -> None:
    """Dead letters: what could not be processed. --id takes ids of letters as well as of events.

    \b
    Example:
      celery -A bridge bus dead list --since 1d
      celery -A bridge bus dead show 1795534238046-3
      celery -A bridge bus dead replay --reason failure --handler tasks.dreams.analyse
    """


@dead.command(name="list")
@letter_filters
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="Most letters shown.")
@json_option
@click.pass_context
def list_(ctx: click.Context, /, limit: int, as_json: bool, **asked: Any) -> None:
    """List dead letters, the newest first."""
    with connected(ctx.obj.app) as (client, settings):
        letters = DeadLetters(client, settings)
        found = list(islice(letters.select(selection_of(asked), newest_first=True), limit))
        size = letters.size()
    if as_json:
        for letter in found:
            click.echo(_json(letter))
        return
    _table(found)
    click.echo(
        f"{len(found)} shown of {size.letters} dead letters of group {settings.group}, {size.bytes} bytes; "
        f"{size.dropped} older ones made room",
        err=True,
    )


@dead.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_option
@click.pass_context
def show(ctx: click.Context, /, ids: tuple[str, ...], as_json: bool) -> None:
    """Show all that is known of some letters, by their ids or those of their events."""
    with connected(ctx.obj.app) as (client, settings):
        found = list(DeadLetters(client, settings).select(Selection(ids=frozenset(ids))))
    missing = set(ids) - {one for letter in found for one in (letter.letter_id, letter.event_id)}
    for letter in found:
        click.echo(_json(letter) if as_json else _full(letter))
    if missing:
        raise click.ClickException(f"no dead letter has the id {', '.join(sorted(missing))}; see bus dead list")


@dead.command()
@letter_filters
@replay_options
@json_option
@click.pass_context
def replay(ctx: click.Context, /, everything: bool, name: str | None, **asked: Any) -> None:
    """Try dead letters again: each goes back to the handler that failed, and leaves the dead letters.

    What fails again is a new dead letter. Letters without a whole event, and those of handlers that are gone, stay.
    """
    how = {key: asked.pop(key) for key in ("rate", "dry_run", "as_json")}
    with connected(ctx.obj.app) as (client, settings):
        filters = {"from": "dead letters"} | as_asked(asked, everything)
        if asked["handler"] is not None:
            handler_named(asked["handler"])
        handlers = {handler.task_name for handler in registry}
        source = DeadSource(client, settings, selection_of(asked), handlers)
        name = name or new_name()
        perform(Replay(client, settings, source, name, filters), name, **how)


@dead.command()
@letter_filters
@click.option("--all", "everything", is_flag=True, help="No filter: all there are.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def drop(ctx: click.Context, /, everything: bool, yes: bool, **asked: Any) -> None:
    """Remove dead letters for good."""
    as_asked(asked, everything)
    with connected(ctx.obj.app) as (client, settings):
        letters = DeadLetters(client, settings)
        ids = [letter.letter_id for letter in letters.select(selection_of(asked))]
        if ids and not yes:
            click.confirm(f"Drop {len(ids)} dead letters of group {settings.group} for good?", abort=True)
        dropped = sum(letters.drop(ids[at : at + _DROP_LETTERS]) for at in range(0, len(ids), _DROP_LETTERS))
    click.echo(f"{dropped} dropped")


def _time(letter: DeadLetter) -> str:
    return datetime.fromtimestamp(letter.at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(letter: DeadLetter) -> str:
    return json.dumps(asdict(letter) | {"raw": letter.raw.decode(errors="backslashreplace")})


def _table(letters: Sequence[DeadLetter]) -> None:
    rows: list[tuple[str, ...]] = [("ID", "TIME", "REASON", "TYPE", "EVENT", "HANDLER", "DETAIL")]
    for one in letters:
        texts = (one.reason, one.event_type, one.event_id, one.handler or one.origin, one.detail)
        rows.append((one.letter_id, _time(one), *(_short(text) for text in texts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _full(letter: DeadLetter) -> str:
    facts = {
        "letter": letter.letter_id,
        "time": _time(letter),
        "reason": letter.reason,
        "detail": letter.detail,
        "origin": letter.origin,
        "event": f"{letter.event_id} {letter.event_type}",
        "handler": letter.handler,
        "task": letter.task_id,
        "attempts": str(letter.attempts or ""),
        "size": f"{letter.size} bytes",
        "sha256": letter.sha256,
        "message": letter.raw.decode(errors="backslashreplace"),
    }
    lines = [f"{name:<9} {printable(text)}" for name, text in facts.items() if text.strip()]
    return "\n".join([*lines, *(f"  {printable(line)}" for line in letter.traceback.splitlines()), ""])

"""``celery -A APP bus dead ...``: look at dead letters, try them again, remove them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import click

from bridge.cli import output
from bridge.cli.commands.replay import new_name, perform, replay_options
from bridge.cli.connect import open_bus
from bridge.cli.options import (
    GLOB,
    all_option,
    as_asked,
    event_filters,
    force_option,
    handler_named,
    json_option,
    options,
    selection_of,
)
from bridge.cli.table import Column, Styled, on_terminal
from bridge.handlers import registry
from bridge.operations import DeadLetterSource, Replay
from bridge.storage import DeadLetter, EntryFilter

#: Letters removed in one step; the server looks at each of them.
_PURGE_LETTERS = 100
letter_filters = options(
    click.option("--reason", type=GLOB, help="Reason, or a glob over it, e.g. failure."),
    event_filters,
)


@click.group()
def dead() -> None:
    """Dead letters: what could not be processed.

    --id takes ids of letters as well as of events.

    \b
    Example:
      celery -A bridge bus dead list --since 1d
      celery -A bridge bus dead show 1795534238046-3
      celery -A bridge bus dead retry --reason failure --handler tasks.dreams.analyse
    """


@dead.command(name="list")
@letter_filters
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="Most letters shown.")
@json_option
@click.pass_context
def list_(ctx: click.Context, /, limit: int, as_json: bool, **asked: Any) -> None:
    """List dead letters, the newest first.

    \b
    Example:
      celery -A bridge bus dead list --since 1d --type 'dream.*'
      celery -A bridge bus dead list --reason payload --json | jq .detail
    """
    with open_bus(ctx.obj.app) as storage:
        letters = storage.dead_letters
        found = [
            letter.redacted_by(storage.settings.redaction)
            for letter in islice(letters.select(selection_of(asked), newest_first=True), limit)
        ]
        size = letters.size()
    if as_json:
        for letter in found:
            output.as_json(_plain(letter))
        return
    if found:
        _table(found)
    output.note(
        f"{len(found)} shown of {size.count} dead letters of group {storage.settings.group}, {size.bytes} bytes; "
        f"{size.dropped} older ones made room"
    )


@dead.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_option
@click.pass_context
def show(ctx: click.Context, /, ids: tuple[str, ...], as_json: bool) -> None:
    """Show all that is known of some letters, by their ids or those of their events.

    \b
    Example:
      celery -A bridge bus dead show 1795534238046-3
    """
    with open_bus(ctx.obj.app) as storage:
        letters = storage.dead_letters
        found = [
            letter.redacted_by(storage.settings.redaction) for letter in letters.select(EntryFilter(ids=frozenset(ids)))
        ]
    missing = set(ids) - {one for letter in found for one in (letter.dead_letter_id, letter.event_id)}
    for letter in found:
        if as_json:
            output.as_json(_plain(letter))
        else:
            _show(letter)
    if missing:
        raise click.ClickException(f"no dead letter has the id {', '.join(sorted(missing))}; see bus dead list")


@dead.command()
@letter_filters
@all_option
@replay_options
@json_option
@click.pass_context
def retry(ctx: click.Context, /, everything: bool, name: str | None, **asked: Any) -> None:
    """Try dead letters again: each goes back to the handler that failed, and leaves the dead letters.

    What fails again is a new dead letter. Letters without a whole event, and those of handlers that are gone, stay.

    \b
    Example:
      celery -A bridge bus dead retry --id 1795534238046-3
      celery -A bridge bus dead retry --handler tasks.dreams.analyse --since 2h --dry-run
    """
    how = {key: asked.pop(key) for key in ("rate", "dry_run", "as_json")}
    filters = {"from": "dead letters"} | as_asked(asked, everything)
    with open_bus(ctx.obj.app) as storage:
        if asked["handler"] is not None:
            handler_named(asked["handler"])
        source = DeadLetterSource(storage, selection_of(asked), registry.names)
        name = name or new_name()
        perform(Replay(storage, source, name, filters), name, **how)


@dead.command()
@letter_filters
@all_option
@force_option
@json_option
@click.pass_context
def purge(ctx: click.Context, /, everything: bool, force: bool, as_json: bool, **asked: Any) -> None:
    """Remove dead letters for good.

    \b
    Example:
      celery -A bridge bus dead purge --reason json --until 7d
      celery -A bridge bus dead purge --all --force
    """
    as_asked(asked, everything)
    with open_bus(ctx.obj.app) as storage:
        letters = storage.dead_letters
        ids = [letter.dead_letter_id for letter in letters.select(selection_of(asked))]
        if ids:
            output.ask(f"Remove {len(ids)} dead letters of group {storage.settings.group} for good?", force=force)
        purged = sum(letters.drop(ids[at : at + _PURGE_LETTERS]) for at in range(0, len(ids), _PURGE_LETTERS))
    if as_json:
        output.as_json({"purged": purged})
    else:
        output.line(f"{purged} removed")


def _plain(letter: DeadLetter) -> dict[str, Any]:
    plain = asdict(letter) | {"raw": letter.raw.decode(errors="backslashreplace")}
    if not letter.redacted:
        del plain["redacted"]
    return plain


def _table(letters: Sequence[DeadLetter]) -> None:
    person = on_terminal()
    when = output.ago if person else output.moment
    output.table(
        [
            Column("ID", whole=True),
            Column("AGE" if person else "TIME", "dim", whole=True),
            Column("REASON", "red"),
            Column("TYPE", crop=True),
            Column("EVENT", crop=True, spare=True),
            Column("HANDLER", crop=True),
            Column("DETAIL", crop=True),
        ],
        (
            (
                one.dead_letter_id,
                when(one.at_ms),
                one.reason,
                one.event_type,
                one.event_id,
                one.handler or one.origin,
                one.detail,
            )
            for one in letters
        ),
    )


def _show(letter: DeadLetter) -> None:
    output.facts(
        {
            "letter": letter.dead_letter_id,
            "time": output.moment(letter.at_ms),
            "reason": Styled(letter.reason, "red"),
            "detail": letter.detail,
            "origin": letter.origin,
            "event": f"{letter.event_id} {letter.event_type}",
            "handler": letter.handler,
            "task": letter.task_id,
            "attempts": letter.attempts or None,
            "size": f"{letter.size} bytes",
            "sha256": letter.sha256,
            "message": letter.raw.decode(errors="backslashreplace") or ("[redacted]" if letter.redacted else None),
        }
    )
    for text in letter.traceback.splitlines():
        output.line("  ", text)
    output.line()

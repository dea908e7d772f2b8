"""``celery -A APP bus dead ...``: list, inspect, retry and purge dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import click

from bridge.cli import output
from bridge.cli.commands.replay import ReplayCommand, new_name, replay_options
from bridge.cli.connect import open_bus
from bridge.cli.ids import full_dead_letter_ids
from bridge.cli.options import (
    all_option,
    event_filters,
    filters_as_given,
    glob,
    handler_named,
    json_option,
    options,
    selection_of,
    yes_option,
)
from bridge.cli.table import Column, Styled, on_terminal
from bridge.handlers import registry
from bridge.operations import DeadLetterSource, EventNode, Replay, TaskNode, Trace, Tracer
from bridge.storage import DeadLetter, EntryFilter

#: Dead letters purged in one step; the server reads each of them.
_PURGE_LETTERS = 100
dead_letter_filters = options(
    click.option("--reason", type=glob, help="Reason or glob, e.g. failure."),
    event_filters,
)


@click.group(short_help="List, inspect, retry and purge dead letters.")
def dead() -> None:
    """List, inspect, retry and purge dead letters: events and tasks that could not be processed.

    Ids are those of dead letters or of their events; the beginning of an id is enough if no other id begins like it.

    \b
    Example:
      celery -A APP bus dead list --since 1d
      celery -A APP bus dead show 1795534238046-3
      celery -A APP bus dead retry --reason failure --handler tasks.dreams.analyse
    """


@dead.command(name="list")
@dead_letter_filters
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="How many to list at most.")
@json_option
@click.pass_context
def list_(ctx: click.Context, /, limit: int, as_json: bool, **given: Any) -> None:
    """List dead letters, the newest first.

    \b
    Example:
      celery -A APP bus dead list --since 1d --type 'dream.*'
      celery -A APP bus dead list --reason payload --json | jq .detail
    """
    with open_bus(ctx.obj.app) as storage:
        dead_letters = storage.dead_letters
        given["id"] = full_dead_letter_ids(storage, given["id"])
        found = [
            dead_letter.redacted_by(storage.settings.redaction)
            for dead_letter in islice(dead_letters.select(selection_of(given), newest_first=True), limit)
        ]
        size = dead_letters.size()
    if as_json:
        for dead_letter in found:
            output.as_json(_plain(dead_letter))
        return
    if found:
        _table(found)
    output.note(
        f"{len(found)} of {size.count} dead letters of group {storage.settings.group}, {size.bytes} bytes in total; "
        f"{size.dropped} older ones were evicted"
    )


@dead.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_option
@click.pass_context
def show(ctx: click.Context, /, ids: tuple[str, ...], as_json: bool) -> None:
    """Show dead letters in full, by their ids or those of their events.

    \b
    Example:
      celery -A APP bus dead show 1795534238046-3
    """
    with open_bus(ctx.obj.app) as storage:
        dead_letters = storage.dead_letters
        ids = full_dead_letter_ids(storage, ids)
        found = [
            dead_letter.redacted_by(storage.settings.redaction)
            for dead_letter in dead_letters.select(EntryFilter(ids=frozenset(ids)))
        ]
        shown = {one for dead_letter in found for one in (dead_letter.dead_letter_id, dead_letter.event_id)}
        tracer = Tracer(ctx.obj.app, storage)
        missing = {one: _of_chain(tracer.trace(one)) for one in sorted(set(ids) - shown)}
    for dead_letter in found:
        if as_json:
            output.as_json(_plain(dead_letter))
        else:
            _show(dead_letter)
    if missing:
        raise click.ClickException("\n".join(_not_found(one, of_chain) for one, of_chain in missing.items()))


@dead.command(short_help="Retry dead letters.")
@dead_letter_filters
@all_option
@replay_options
@json_option
@click.pass_context
def retry(ctx: click.Context, /, everything: bool, name: str | None, **given: Any) -> None:
    """Retry dead letters: each is sent to the handler that failed, and deleted from the list.

    A task that fails again becomes a new dead letter. What the tasks publish are new events, which run their handlers.
    The command shows which tasks would run, and asks for confirmation; --yes skips that, and is required where there is
    no terminal. Dead letters without a complete event, and those whose handler no longer exists, cannot be retried and
    stay in the list.

    \b
    Example:
      celery -A APP bus dead retry --id 1795534238046-3
      celery -A APP bus dead retry --handler tasks.dreams.analyse --since 2h --dry-run
    """
    how = {key: given.pop(key) for key in ("rate", "dry_run", "yes", "as_json")}
    filters = {"from": "dead letters"} | filters_as_given(given, everything)
    with open_bus(ctx.obj.app) as storage:
        if given["handler"] is not None:
            handler_named(given["handler"])
        given["id"] = full_dead_letter_ids(storage, given["id"])
        source = DeadLetterSource(storage, selection_of(given), registry)
        name = name or new_name()
        replay = Replay(storage, source, name, filters)
        words = ("Retry", "dead letter", "retried")
        ReplayCommand(ctx.obj.app, storage, replay, name, *words).perform(**how)


@dead.command()
@dead_letter_filters
@all_option
@yes_option
@json_option
@click.pass_context
def purge(ctx: click.Context, /, everything: bool, yes: bool, as_json: bool, **given: Any) -> None:
    """Delete dead letters permanently.

    \b
    Example:
      celery -A APP bus dead purge --reason json --until 7d
      celery -A APP bus dead purge --all --yes
    """
    filters_as_given(given, everything)
    with open_bus(ctx.obj.app) as storage:
        dead_letters = storage.dead_letters
        given["id"] = full_dead_letter_ids(storage, given["id"])
        ids = [dead_letter.dead_letter_id for dead_letter in dead_letters.select(selection_of(given))]
        if ids:
            output.ask(f"Permanently delete {len(ids)} dead letters of group {storage.settings.group}?", yes=yes)
        purged = sum(dead_letters.drop(ids[at : at + _PURGE_LETTERS]) for at in range(0, len(ids), _PURGE_LETTERS))
    if as_json:
        output.as_json({"purged": purged})
    else:
        output.line(f"{purged} deleted")


def _of_chain(trace: Trace | None) -> list[str]:
    """Return the ids of the dead letters of a chain."""
    found: list[str] = []
    nodes: list[EventNode | TaskNode] = list(trace.roots) if trace else []
    while nodes:
        node = nodes.pop()
        nodes += node.events
        if isinstance(node, EventNode):
            nodes += node.tasks
        elif node.dead_letter_id:
            found.append(node.dead_letter_id)
    return sorted(found)


def _not_found(any_id: str, of_chain: list[str]) -> str:
    advice = f"its chain has bus dead show {' '.join(of_chain)}" if of_chain else "see bus dead list"
    return f"no dead letter has the id {any_id}; {advice}"


def _plain(dead_letter: DeadLetter) -> dict[str, Any]:
    plain = asdict(dead_letter) | {"raw": dead_letter.raw.decode(errors="backslashreplace")}
    if not dead_letter.redacted:
        del plain["redacted"]
    return plain


def _table(dead_letters: Sequence[DeadLetter]) -> None:
    person = on_terminal()
    when = output.ago if person else output.moment
    output.table(
        [
            Column("ID", whole=True),
            Column("AGE" if person else "TIME", "dim", whole=True),
            Column("REASON", "red"),
            Column("TYPE", crop=True),
            Column("EVENT", crop=True, spare=True),
            Column("HANDLER", dotted=True),
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
            for one in dead_letters
        ),
    )


def _show(dead_letter: DeadLetter) -> None:
    output.facts(
        {
            "dead letter": dead_letter.dead_letter_id,
            "time": output.moment(dead_letter.at_ms),
            "reason": Styled(dead_letter.reason, "red"),
            "detail": dead_letter.detail,
            "origin": dead_letter.origin,
            "event": f"{dead_letter.event_id} {dead_letter.event_type}",
            "handler": dead_letter.handler,
            "task": dead_letter.task_id,
            "attempts": dead_letter.attempts or None,
            "size": f"{dead_letter.size} bytes",
            "sha256": dead_letter.sha256,
            "message": dead_letter.raw.decode(errors="backslashreplace")
            or ("[redacted]" if dead_letter.redacted else None),
        }
    )
    for text in dead_letter.traceback.splitlines():
        output.line("  ", text)
    output.line()

"""``celery -A APP bus groups ...``: list and delete the consumer groups of the journal."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.cli import output
from bridge.cli.connect import open_bus
from bridge.cli.options import force_option, json_option
from bridge.cli.table import Cell, Column, Styled
from bridge.operations import Groups
from bridge.storage import GroupStatus, read_status

_COLUMNS = [
    Column("GROUP", "bold", whole=True),
    Column("CONSUMERS", right=True),
    Column("PENDING", right=True),
    Column("BACKLOG", right=True),
    Column("LAST DELIVERED"),
    Column("APPLICATION"),
]


@click.group()
def groups() -> None:
    """List and delete consumer groups.

    Each application has one group, named after the application or by bridge_group. Each group receives every event
    once.
    """


@groups.command(name="list")
@json_option
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool) -> None:
    """List the groups of all applications on this bus.

    \b
    CONSUMERS       consumers of the group in Redis
    PENDING         events that a subscriber has read and not acknowledged yet
    BACKLOG         events that the group has not dispatched yet, pending ones included
    LAST DELIVERED  time of the newest event that was read

    bus status shows more.

    \b
    Example:
      celery -A bridge bus groups list
    """
    with open_bus(ctx.obj.app) as storage:
        found = read_status(storage).groups
    own = storage.settings.group
    if as_json:
        for group in found:
            shown = ("name", "backlog", "exact", "pending", "last_ms")
            output.as_json({name: getattr(group, name) for name in shown} | {"own": group.name == own})
        return
    if found:
        output.table(_COLUMNS, [_row(group, own) for group in found])
    if own not in [group.name for group in found]:
        output.note(f"group {own} of this application does not exist: none of its subscribers has run yet")


def _row(group: GroupStatus, own: str) -> list[Cell]:
    return [
        group.name,
        len(group.pending),
        sum(group.pending.values()),
        f"{group.backlog}{'' if group.exact else '+'}",
        output.moment(group.last_ms) or "never",
        Styled("this application", "green") if group.name == own else "",
    ]


@groups.command(short_help="Delete a group with everything that is stored for it.")
@click.argument("name")
@force_option
@json_option
@click.pass_context
def delete(ctx: click.Context, /, name: str, force: bool, as_json: bool) -> None:
    """Delete the group of an application that is no longer used, with everything that the bridge stores for it.

    This deletes its dead letters, too, and the list of its tasks in flight: tasks that are queued still run, but a lost
    one is not sent again. Events stay in the journal. The command refuses while a subscriber of the group is alive,
    because that would recreate the group at the oldest event; --force deletes it anyway and does not ask.

    \b
    Example:
      celery -A bridge bus groups delete old-shop
    """
    with open_bus(ctx.obj.app) as storage:
        all_groups = Groups(storage)
        if not all_groups.exists(name):
            names = ", ".join(group.name for group in read_status(storage).groups) or "none"
            raise click.ClickException(f"there is no group {output.printable(name)}; existing groups: {names}")
        if not force and all_groups.in_use(name):
            raise click.ClickException(
                f"group {name} has a live subscriber: stop its workers and bus subscribe first, or use --force"
            )
        held = all_groups.holdings(name)
        what = f"{held.pending} pending entries, {held.dead_letters} dead letters, {held.in_flight} tasks in flight"
        whose = "group" if name != storage.settings.group else "this application's own group"
        output.ask(f"Permanently delete {whose} {name} with its {what} and its replays?", force=force)
        all_groups.delete(name)
    if as_json:
        output.as_json({"deleted": name} | asdict(held))
    else:
        output.line(f"group {name} deleted: {what}")

"""``celery -A APP bus groups ...``: list and delete the consumer groups of the journal."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.cli import output
from bridge.cli.connect import open_bus
from bridge.cli.options import duration, json_option, yes_option
from bridge.cli.table import Cell, Column, Styled
from bridge.operations import Groups
from bridge.storage import GroupStatus, Storage, read_status

_COLUMNS = [
    Column("GROUP", "bold", whole=True),
    Column("CONSUMERS", right=True),
    Column("PENDING", right=True),
    Column("BACKLOG", right=True),
    Column("LAST DELIVERED"),
    Column("RETENTION", right=True),
    Column("APPLICATION"),
]


@click.group()
def groups() -> None:
    """List and delete consumer groups, and keep events for one longer.

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
    RETENTION       how long events are kept for the group; the longest one of all groups counts

    bus status shows more.

    \b
    Example:
      celery -A APP bus groups list
    """
    with open_bus(ctx.obj.app) as storage:
        found = read_status(storage).groups
        retention = _retention(storage)
    own = storage.settings.group
    if as_json:
        for group in found:
            shown = ("name", "backlog", "exact", "pending", "last_ms")
            event_ttl_s = retention.get(group.name)
            row = {name: getattr(group, name) for name in shown}
            output.as_json(row | {"event_ttl_s": event_ttl_s, "own": group.name == own})
        return
    if found:
        output.table(_COLUMNS, [_row(group, retention.get(group.name), own) for group in found])
    if own not in [group.name for group in found]:
        output.note(f"group {own} of this application does not exist: none of its subscribers has run yet")


def _retention(storage: Storage) -> dict[str, int]:
    """Return for how long events are kept for each group, in seconds, as far as that is known."""
    retention = {name: shared.event_ttl_s for name, shared in storage.group_settings.all().items()}
    for name, kept_s in storage.group_settings.retained().items():
        retention[name] = max(kept_s, retention.get(name, 0))
    return retention


def _row(group: GroupStatus, event_ttl_s: int | None, own: str) -> list[Cell]:
    return [
        group.name,
        len(group.pending),
        sum(group.pending.values()),
        f"{group.backlog}{'' if group.exact else '+'}",
        output.moment(group.last_ms) or "never",
        f"{event_ttl_s} s" if event_ttl_s else "unknown",
        Styled("this application", "green") if group.name == own else "",
    ]


@groups.command(short_help="Delete a group with everything that is stored for it.")
@click.argument("name")
@click.option("--force", is_flag=True, help="Delete it although a subscriber of the group is alive.")
@yes_option
@json_option
@click.pass_context
def delete(ctx: click.Context, /, name: str, force: bool, yes: bool, as_json: bool) -> None:
    """Delete the group of an application that is no longer used, with everything that the bridge stores for it.

    This deletes its dead letters, too, and the list of its tasks in flight: tasks that are queued still run, but a lost
    one is not sent again. Events stay in the journal. The command refuses while a subscriber of the group is alive,
    because that would recreate the group at the oldest event; --force deletes it anyway.

    \b
    Example:
      celery -A APP bus groups delete old-shop
    """
    with open_bus(ctx.obj.app) as storage:
        all_groups = Groups(storage)
        if not all_groups.exists(name):
            raise _missing(storage, name)
        if not force and all_groups.in_use(name):
            raise click.ClickException(
                f"group {name} has a live subscriber: stop its workers and bus subscribe first, or use --force"
            )
        held = all_groups.holdings(name)
        what = f"{held.pending} pending entries, {held.dead_letters} dead letters, {held.in_flight} tasks in flight"
        whose = "group" if name != storage.settings.group else "this application's own group"
        output.ask(f"Permanently delete {whose} {name} with its {what} and its replays?", yes=yes)
        all_groups.delete(name)
    if as_json:
        output.as_json({"deleted": name} | asdict(held))
    else:
        output.line(f"group {name} deleted: {what}")


def _missing(storage: Storage, name: str) -> click.ClickException:
    names = ", ".join(group.name for group in read_status(storage).groups) or "none"
    return click.ClickException(f"there is no group {output.printable(name)}; existing groups: {names}")


@groups.command(short_help="Keep events for a group longer, although it is down.")
@click.argument("name")
@click.argument("lifetime", type=duration)
@json_option
@click.pass_context
def retain(ctx: click.Context, /, name: str, lifetime: int, as_json: bool) -> None:
    """Keep the events of the journal for a group for LIFETIME: 36h, 7d.

    This is for a group whose subscribers are down for longer than its bridge_event_ttl_s. It applies at once, and for
    LIFETIME from now, whatever the settings of its subscribers are. Then bridge_event_ttl_s counts again.

    \b
    Example:
      celery -A APP bus groups retain shop 3d
    """
    with open_bus(ctx.obj.app) as storage:
        if name not in storage.journal.groups():
            raise _missing(storage, name)
        kept_s = _retention(storage).get(name, 0)
        if kept_s > lifetime:
            raise click.ClickException(f"events are already kept for group {name} for {kept_s} s")
        storage.group_settings.retain(name, lifetime)
    if as_json:
        output.as_json({"group": name, "event_ttl_s": lifetime})
    else:
        output.line(f"events are kept for group {name} for {lifetime} s")

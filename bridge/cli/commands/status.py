"""``celery -A APP bus status``: backlog, subscribers and failures of each consumer group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from bridge.cli import output
from bridge.cli.connect import open_bus
from bridge.cli.options import json_option
from bridge.cli.table import Cell, Column, Styled
from bridge.storage import BusStatus, GroupStatus, Presence, QueueStatus, handler_differences, read_status
from bridge.subscriber import server_of

#: Settings of the server that are shown, by their names in CONFIG.
_SHOWN = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
#: Age of the oldest event in the backlog from which it is shown in red.
_LATE_S = 60


@click.command(short_help="Show backlog, subscribers and failures of each group.")
@json_option
@click.pass_context
def status(ctx: click.Context, /, as_json: bool) -> None:
    """Show backlog, subscribers and failures of each consumer group of the bus.

    \b
    BACKLOG    events in the journal that the group has not dispatched yet
    OLDEST     age of the oldest event in the backlog
    RATE       task messages per second, over the last ten seconds
    IN FLIGHT  tasks that were sent and have not ended, including those that were given up and may still run
    OVERDUE    tasks in flight that should have ended
    DEAD       dead letters

    A subscriber without a heartbeat for six seconds is considered gone.

    \b
    QUEUE      queue of Celery's broker that tasks of the group are sent to
    WAITING    messages in the queue; those that workers have fetched do not count
    OLDEST     for how long the next message has waited
    CONSUMERS  workers that take tasks from the queue; ? if unknown

    \b
    Example:
      celery -A APP bus status
      celery -A APP bus status --json | jq '.groups[] | select(.backlog > 1000)'
    """
    with open_bus(ctx.obj.app) as storage:
        settings = storage.settings
        server = server_of(storage.client, "bus").settings
        bus = read_status(storage)
    own = settings.group
    if as_json:
        output.as_json(_json(bus, server, own))
        return
    version = server.get("version", "(unknown version)")
    shown = [f"{name} {server.get(name, 'unknown')}" for name in _SHOWN]
    output.line("bus      ", settings.redacted_url, Styled(f"  Redis {version}, {', '.join(shown)}", "dim"))
    since = f", the oldest from {output.moment(bus.first_ms)}" if bus.entries else ""
    output.line("journal  ", f"{bus.entries} entries of {settings.channel_prefix}*{since}")
    if bus.group(own) is None:
        output.line(
            "group    ", own, Styled(" does not exist: no subscriber of this application has run yet", "yellow")
        )
    if bus.groups:
        output.line()
        _groups(bus, own)
        output.line()
        _subscribers(bus)
        _queues(bus)
        for group in bus.groups:
            if missing := handler_differences(group.subscribers):
                text = f"the subscribers of group {group.name} have different handlers ({len(missing)}), see bus check"
                output.line(Styled(text, "yellow"))


def _groups(bus: BusStatus, own: str) -> None:
    columns = [Column("GROUP", whole=True)]
    columns += [Column(name, right=True) for name in ("BACKLOG", "OLDEST", "RATE", "IN FLIGHT", "OVERDUE", "DEAD")]
    columns += [Column("SUBSCRIBERS", right=True)]
    output.table(columns, [_group_row(group, own) for group in bus.groups])


def _group_row(group: GroupStatus, own: str) -> list[Cell]:
    late = (group.oldest_s or 0) > _LATE_S
    return [
        Styled(group.name, "bold" if group.name == own else ""),
        f"{group.backlog}{'' if group.exact else '+'}",
        Styled("-" if group.oldest_s is None else _span(group.oldest_s), "red" if late else ""),
        f"{group.dispatched_per_s:.1f}/s",
        group.in_flight,
        Styled(str(group.overdue), "red" if group.overdue else ""),
        Styled(str(group.dead_letters), "yellow" if group.dead_letters else ""),
        Styled(str(group.alive), "" if group.alive else "bold red"),
    ]


def _subscribers(bus: BusStatus) -> None:
    rows: list[list[Cell]] = []
    for group in bus.groups:
        known = {subscriber.name for subscriber in group.subscribers}
        rows += [_subscriber_row(bus, group, subscriber) for subscriber in group.subscribers]
        rows += [
            [name, group.name, Styled("a consumer without heartbeats", "dim"), pending, "", ""]
            for name, pending in group.pending.items()
            if name not in known
        ]
    pending, rate = Column("PENDING", right=True), Column("RATE", right=True)
    output.table([Column("SUBSCRIBER", whole=True), "GROUP", "STATE", pending, rate, "LAST GAP"], rows)


def _subscriber_row(bus: BusStatus, group: GroupStatus, subscriber: Presence) -> list[Cell]:
    gap = f"{_span((bus.at_ms - subscriber.gap_ms) / 1000)} ago" if subscriber.gap_ms else ""
    pending = group.pending.get(subscriber.name, 0)
    rate = f"{subscriber.dispatched_per_s:.1f}/s" if subscriber.alive else ""
    return [subscriber.name, group.name, _state(subscriber), pending, rate, gap]


def _queues(bus: BusStatus) -> None:
    rows = [_queue_row(group, queue) for group in bus.groups for queue in group.queues or ()]
    if rows:
        output.line()
        numbers = [Column(name, right=True) for name in ("WAITING", "OLDEST", "CONSUMERS")]
        output.table([Column("QUEUE", whole=True), "GROUP", *numbers, "STATE"], rows)


def _queue_row(group: GroupStatus, queue: QueueStatus) -> list[Cell]:
    idle = queue.messages == 0
    oldest = "-" if idle or queue.oldest_s is None else _span(queue.oldest_s)
    waiting, consumers = ("?" if number is None else str(number) for number in (queue.messages, queue.consumers))
    alone = Styled(consumers, "yellow" if queue.consumers == 0 else "")
    return [queue.name, group.name, waiting, oldest, alone, _queue_state(queue)]


def _queue_state(queue: QueueStatus) -> Cell:
    full = ["full: dispatch waits"] if queue.full else []
    if queue.consumers == 0:
        return Styled("; ".join(["no worker takes from it", *full]), "bold red" if queue.messages else "yellow")
    if queue.problem == "stalled":
        return Styled("; ".join([f"nothing has left it for {_span(queue.stalled_s or 0)}", *full]), "bold red")
    if full:
        return Styled(full[0], "yellow")
    if queue.messages is None:
        return Styled("not measured", "dim")
    return Styled("moves" if queue.messages else "empty", "green")


def _state(subscriber: Presence) -> Cell:
    if not subscriber.alive:
        return Styled(f"gone: last heartbeat {_span(subscriber.seen_s)} ago", "bold red")
    if subscriber.problems:
        return Styled("; ".join(subscriber.problems), "red")
    return Styled(subscriber.waits, "yellow") if subscriber.waits else Styled("ready", "green")


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.1f} s"


def _json(bus: BusStatus, server: Mapping[str, str], own: str) -> dict[str, Any]:
    groups = []
    for group in bus.groups:
        fields = asdict(group)
        del fields["starts"]  # a histogram, for monitoring
        for shown, subscriber in zip(fields["subscribers"], group.subscribers, strict=True):
            del shown["stopped"], shown["reports_queues"]  # those that have stopped are not listed
            shown |= {"alive": subscriber.alive, "ready": subscriber.ready}
        fields |= {"dispatched_per_s": group.dispatched_per_s, "alive": group.alive}
        groups.append(fields | {"handler_differences": handler_differences(group.subscribers)})
    journal = {"entries": bus.entries, "first_ms": bus.first_ms, "last_ms": bus.last_ms}
    return {"at_ms": bus.at_ms, "group": own, "server": dict(server), "journal": journal, "groups": groups}

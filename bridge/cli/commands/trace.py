"""``celery -A APP bus trace``: the tasks and events that an event caused, as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

from bridge.cli import output
from bridge.cli.connect import open_bus
from bridge.cli.ids import look_up
from bridge.cli.options import json_option
from bridge.cli.table import Cell, Styled, on_terminal
from bridge.operations import EventNode, TaskNode, Tracer, further

STATE_STYLES = {
    "SUCCESS": "green",
    "FAILURE": "bold red",
    "GIVEN_UP": "bold red",
    "STARTED": "blue",
    "RETRY": "yellow",
    "SENT": "yellow",
    "WAITING": "yellow",
}
#: Characters of the error text of a failure; ``bus dead show`` shows all of it.
_DETAIL_CHARS = 200


@click.command(short_help="Show the tasks and events that an event caused.")
@click.argument("any_id", metavar="ID")
@json_option
@click.pass_context
def trace(ctx: click.Context, /, any_id: str, as_json: bool) -> None:
    """Show an event with its tasks, the events that these published, their tasks, and so on.

    ID is the id of any event of the chain, or a correlation id, or the beginning of one. For each task the command
    shows its state, the duration of its last run and its queue. An event that belongs to a trace of OpenTelemetry shows
    the id of the trace, once for each part of the tree.

    \b
    WAITING   its event has not been dispatched yet
    SENT      in its queue
    STARTED   running
    RETRY     will be retried
    SUCCESS   done
    FAILURE   became a dead letter, shown with reason and id (see bus dead)
    GIVEN_UP  has a dead letter, too; but if a worker still gets its message, it runs, and the dead letter is removed
    SKIPPED   where= returned false, or the handler is newer than the event

    \b
    Example:
      celery -A APP bus trace 3f2a7c1e-9d0b-4c55-8a43-0c6f4b1f2a77
      celery -A APP bus trace order-1234 --json
    """
    with open_bus(ctx.obj.app) as storage:
        found = look_up(storage, any_id, Tracer(ctx.obj.app, storage).trace)
    if found is None:
        kept = f"kept for {storage.settings.event_ttl_s / 3600:g} h"
        raise click.ClickException(f"no event or chain with id {output.printable(any_id)} ({kept})")
    if as_json:
        output.as_json(asdict(found))
        return
    for root in found.roots:
        for parts in _event(root, "", "", found.requested_id, ""):
            output.line(*parts)
    if found.hidden:
        output.line(Styled(f"{further(found.hidden)} more events start this chain, not shown", "dim"))


def _event(node: EventNode, branch: str, indent: str, requested_id: str, above: str) -> Iterator[list[Cell]]:
    """Yield the lines of an event and of what it caused; *above* is the id of the trace of the event that caused it."""
    kind = Styled(node.event_type, "bold") if node.event_type else Styled("(expired event)", "dim")
    when = output.ago(node.at_ms) if node.at_ms and on_terminal() else output.moment(node.at_ms)
    about = [text for text in (node.source, when) if text]
    if node.event_type and not node.tasks:
        about.append("no handlers")
    if node.trace_id not in ("", above):
        about.append(f"trace {node.trace_id}")
    here = Styled("  <- this event" if node.event_id == requested_id else "", "bold cyan")
    yield [Styled(branch, "dim"), kind, "  ", node.event_id, Styled("  ".join(["", *about]), "dim"), here]
    yield from _below([*node.tasks, *node.events], node.hidden, indent, requested_id, node.trace_id)


def _task(node: TaskNode, branch: str, indent: str, requested_id: str, above: str) -> Iterator[list[Cell]]:
    name = node.handler or f"task {node.task_id} (unknown handler)"
    runtime = "" if node.runtime_s is None else f"{node.runtime_s:.3f} s"
    about = [text for text in (runtime, node.queue, node.replay and f"replay {node.replay}") if text]
    detail = node.detail if len(node.detail) <= _DETAIL_CHARS else f"{node.detail[:_DETAIL_CHARS]}..."
    dead_letter = f"  (dead letter {node.dead_letter_id})" if node.dead_letter_id else ""
    yield [
        Styled(branch, "dim"),
        name,
        "  ",
        Styled(node.state, STATE_STYLES.get(node.state, "dim")),
        Styled("  ".join(["", *about]), "dim"),
        Styled(f"  {detail}{dead_letter}" if detail else "", "red"),
    ]
    yield from _below(node.events, 0, indent, requested_id, above)


def _below(
    nodes: Sequence[EventNode | TaskNode], hidden: int, indent: str, requested_id: str, above: str
) -> Iterator[list[Cell]]:
    for number, node in enumerate(nodes, 1):
        last = number == len(nodes) and not hidden
        branch, deeper = indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")
        if isinstance(node, EventNode):
            yield from _event(node, branch, deeper, requested_id, above)
        else:
            yield from _task(node, branch, deeper, requested_id, above)
    if hidden:
        yield [Styled(f"{indent}└─ {further(hidden)} more, not shown", "dim")]

"""The chain of an event as lines, each indented below the line that caused it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bridge.operations import EventNode, TaskNode, Trace, further


@dataclass(frozen=True)
class Line:
    """One line; exactly one of *event*, *task* and *hidden* is set.

    Arguments:
        depth: 0 for the first event of a chain.
        requested: Whether it is the requested event.
        hidden: How many further events are not shown here.
        after_s: Seconds between the first event of the chain and this one entering the journal; None for the first
            event, or if it is unknown.
    """

    depth: int
    event: EventNode | None = None
    task: TaskNode | None = None
    requested: bool = False
    hidden: int = 0
    after_s: float | None = None

    @property
    def further(self) -> str:
        """The number of hidden events, as text."""
        return further(self.hidden)


def lines(trace: Trace | None) -> list[Line]:
    """Return the lines of a chain from top to bottom; empty without a chain."""
    if trace is None:
        return []
    first_ms = min((root.at_ms for root in trace.roots if root.at_ms), default=0)
    shown = [line for root in trace.roots for line in _of_event(root, 0, trace.requested_id, first_ms)]
    return shown + ([Line(0, hidden=trace.hidden)] if trace.hidden else [])


def find(trace: Trace, event_id: str) -> EventNode | None:
    """Return the node of an event in its chain; None if it is not shown there."""
    return next((line.event for line in lines(trace) if line.event and line.event.event_id == event_id), None)


def _of_event(node: EventNode, depth: int, requested_id: str, first_ms: int) -> Iterator[Line]:
    after_s = (node.at_ms - first_ms) / 1000 if depth and first_ms and node.at_ms else None
    yield Line(depth, event=node, requested=node.event_id == requested_id, after_s=after_s)
    for task in node.tasks:
        yield Line(depth + 1, task=task)
        for event in task.events:
            yield from _of_event(event, depth + 2, requested_id, first_ms)
    for event in node.events:
        yield from _of_event(event, depth + 1, requested_id, first_ms)
    if node.hidden:
        yield Line(depth + 1, hidden=node.hidden)

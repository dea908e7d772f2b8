"""Traces as plain trees, for comparisons, and the output of ``bus trace``."""

from __future__ import annotations

import re
from typing import Any

from bridge.operations.task_states import EventNode, TaskNode
from bridge.operations.trace import Tracer


def tree(node: EventNode | TaskNode) -> Any:
    """Return a node as its label and its children, sorted by label."""
    below: list[Any] = [tree(event) for event in node.events]
    if isinstance(node, EventNode):
        label = node.event_type or f"({node.event_id})"
        below += [tree(task) for task in node.tasks]
        below += [(f"{node.hidden} more", [])] if node.hidden else []
    else:
        label = " ".join(filter(None, (node.handler.removeprefix("tests.chains."), node.state, node.replay)))
    return label, sorted(below)


def trees(tracer: Tracer, any_id: str) -> Any:
    found = tracer.trace(any_id)
    return found and [tree(root) for root in found.roots]


def events(root: EventNode | TaskNode) -> list[EventNode]:
    """Return every event of a tree, from the root down."""
    below = [*root.events, *(root.tasks if isinstance(root, EventNode) else ())]
    return ([root] if isinstance(root, EventNode) else []) + [one for node in below for one in events(node)]


def tasks(root: EventNode | TaskNode) -> list[TaskNode]:
    return [task for event in events(root) for task in event.tasks]


def shape(text: str) -> str:
    """Return the tree without ids, times and branches."""
    found = ""
    for line in text.splitlines():
        indent, name, rest = re.match(r"([ │├└─]*)(\S+)  (\S+)", line).groups()  # type: ignore[union-attr]  # else fail
        about = f"{name.removeprefix('tests.chains.')} {rest}" if rest.isupper() else name
        found += f"{' ' * len(indent)}{about}\n"
    return found

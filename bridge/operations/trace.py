"""The chain of an event: its tasks, the events that these published, their tasks, and so on.

It is read from the causality index, which is written with each event, and from the ledger, without a scan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery import Celery

from bridge.events import Event, trace_context_of
from bridge.operations.history import History
from bridge.operations.task_states import EventNode, TaskNode, TaskStates
from bridge.storage import MAX_INDEXED, Storage, stream_position

#: Most events of one trace, and most events shown that one event caused: a page cannot show more.
_MAX_EVENTS = 500
_MAX_CONSEQUENCES = 50
#: Longest chain that is shown, and how much of it above the requested event; any publisher can create a longer one.
_MAX_DEPTH = 50
_MAX_ABOVE = 40
#: Longest task id that is looked up. The id comes from the event, and any publisher can write any id there.
_MAX_TASK_ID = 200


@dataclass(frozen=True)
class Trace:
    """The complete chain of an event.

    Arguments:
        requested_id: The id that was looked up: of an event of the chain, or its correlation id.
        hidden: How many further events that start the chain are not shown, see :func:`further`.
    """

    requested_id: str
    correlation_id: str
    roots: tuple[EventNode, ...]
    hidden: int = 0


@dataclass
class _Fact:
    """What was read for one event."""

    event: Event | None
    entry_id: str
    children: list[str] = field(default_factory=list)
    hidden: int = 0
    tasks: list[TaskNode] = field(default_factory=list)


def further(hidden: int) -> str:
    """Return the number of events that are not shown, as text: an index may have had no room for more of them."""
    return f"{hidden:,}{' or more' if hidden >= MAX_INDEXED - _MAX_CONSEQUENCES else ''}"


class Tracer:
    """Looks up the chains of events, for one application.

    Arguments:
        app: Its handlers must be imported.
        storage: The bus, as the group of the application sees it.
    """

    def __init__(self, app: Celery, storage: Storage) -> None:
        self._history = History(storage)
        self._task_states = TaskStates(app, storage)

    def trace(self, any_id: str) -> Trace | None:
        """Return the chain of an event or of a correlation id; None if the id is unknown.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        above, event = [any_id], self._one(any_id)
        correlation_id = (event.correlation_id if event else None) or any_id
        while event is not None and event.follows not in (None, *above) and len(above) <= _MAX_ABOVE:
            above.append(str(event.follows))
            event = self._one(above[-1])
        roots, hidden = ([above[-1]], 0) if event is not None else self._first(above)
        if not roots:
            return None
        facts, seen = self._facts(roots, above), set[str]()
        nodes = [self._node(root, facts, seen) for root in _in_order(roots, facts)]
        return Trace(any_id, correlation_id, tuple(node for node in nodes if node is not None), hidden)

    def _first(self, above: Sequence[str]) -> tuple[list[str], int]:
        """Return the first events of a chain, and how many more there are.

        Arguments:
            above: The ids from the requested one upwards. The last is the id of an expired event, or a correlation id,
                with which several events may start, or an unknown id.
        """
        first, hidden = self._all_consequences(above[-1:], above)[0]
        caused = any(_cause(event) == above[-1] for event in self._history.events(first).values())
        return ([above[-1]], 0) if caused else (first, hidden)

    def _one(self, event_id: str) -> Event | None:
        return self._history.events([event_id]).get(event_id)

    def _all_consequences(self, event_ids: Sequence[str], above: Sequence[str]) -> list[tuple[list[str], int]]:
        """Return for each event the first ones that it caused, including those *above*, and the number of others."""
        below = dict(zip(above[1:], above, strict=False))
        found = []
        consequences = self._history.consequences(event_ids, _MAX_CONSEQUENCES)
        for event_id, (shown, count) in zip(event_ids, consequences, strict=True):
            if event_id in below and below[event_id] not in shown:
                shown.append(below[event_id])
            found.append((shown, max(0, count - len(shown))))
        return found

    def _facts(self, roots: Sequence[str], above: Sequence[str]) -> dict[str, _Fact]:
        """Read the events below *roots*, level by level; those *above* the requested one are read first."""
        facts: dict[str, _Fact] = {}
        level = list(dict.fromkeys(roots))
        for _ in range(_MAX_DEPTH):
            level = sorted(level, key=lambda event_id: event_id not in above)[: _MAX_EVENTS - len(facts)]
            if not level:
                break
            events = self._history.events(level)
            entries = self._history.entry_ids(level)
            tasks = self._task_states.of_events({event_id: event.type for event_id, event in events.items()}, entries)
            below: list[str] = []
            for event_id, (children, hidden) in zip(level, self._all_consequences(level, above), strict=True):
                event, entry_id = events.get(event_id), entries.get(event_id, "")
                facts[event_id] = _Fact(event, entry_id, children, hidden, tasks.get(event_id, []))
                below += children
            level = [event_id for event_id in dict.fromkeys(below) if event_id not in facts]
        return facts

    def _node(self, event_id: str, facts: Mapping[str, _Fact], seen: set[str]) -> EventNode | None:
        """Return an event with its consequences; None if it is already shown, as publishers can create circles."""
        if event_id in seen:
            return None
        seen.add(event_id)
        fact = facts[event_id]
        by_task: dict[str, list[EventNode]] = defaultdict(list)
        children = _in_order(fact.children, facts)
        for child in children:
            if (node := self._node(child, facts, seen)) is not None:
                by_task[publisher_of(facts[child].event)].append(node)
        tasks = [replace(task, events=tuple(by_task.pop(task.task_id, ()))) for task in fact.tasks]
        others = by_task.pop("", [])
        tasks += [
            replace(task, events=tuple(by_task[task.task_id])) for task in self._task_states.of_unknown_tasks(by_task)
        ]
        event = fact.event
        trace = trace_context_of(event.metadata) if event else None
        return EventNode(
            event_id,
            event.type if event else "",
            (event.source if event else None) or "",
            stream_position(fact.entry_id)[0],
            tuple(tasks),
            tuple(others),
            fact.hidden + len(fact.children) - len(children),
            trace.trace_id if trace else "",
        )


def _cause(event: Event) -> Any:
    return (event.metadata or {}).get("causationId")


def _in_order(event_ids: Sequence[str], facts: Mapping[str, _Fact]) -> list[str]:
    """Return the events that were read, in the order of the journal: many may have the same millisecond."""
    read = (event_id for event_id in event_ids if event_id in facts)
    return sorted(read, key=lambda event_id: stream_position(facts[event_id].entry_id))


def publisher_of(event: Event | None) -> str:
    """Return the id of the task that published an event; empty if no task did."""
    task_id = (event.metadata or {}).get("taskId") if event else None
    return task_id if isinstance(task_id, str) and len(task_id) <= _MAX_TASK_ID else ""

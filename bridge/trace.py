"""What came of an event: its tasks, the events that those published, their tasks, and so on.

Read from the causality index, which is written with each event, and from the ledger; nothing is scanned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from celery import Celery
from redis import Redis

from bridge.connection import attempt
from bridge.event import Event
from bridge.history import History
from bridge.keys import Keys
from bridge.outcomes import EventNode, Outcomes, TaskNode
from bridge.settings import BridgeSettings

#: Most events of one trace, and most consequences of one event that are shown: more do not fit a screen or a page.
_MAX_EVENTS = 500
_MAX_CONSEQUENCES = 50
#: Longest chain that is shown; anybody may write a longer one.
_MAX_DEPTH = 50
#: Longest task id that is looked up: an event says which task published it, and anybody may publish.
_MAX_TASK_ID = 200


@dataclass(frozen=True)
class Trace:
    """The whole chain that the id *asked* for belongs to: of an event, or a correlation id."""

    asked: str
    correlation_id: str
    roots: tuple[EventNode, ...]


@dataclass
class _Fact:
    """What was read of one event."""

    event: Event | None
    entry_id: str
    children: list[str] = field(default_factory=list)
    hidden: int = 0
    tasks: list[TaskNode] = field(default_factory=list)


class Tracer:
    """Looks up what came of events, for one application.

    Arguments:
        app: Its handlers must be imported.
        client: Connected to the bus.
        settings: Prefix and group.
    """

    def __init__(self, app: Celery, client: Redis, settings: BridgeSettings) -> None:
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.channel_prefix)
        self._history = History(client, settings)
        self._outcomes = Outcomes(app, client, settings)

    def trace(self, any_id: str) -> Trace | None:
        """Return the chain of an event, or of a correlation id; None when nothing is known of it.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        roots, correlation_id = self._roots(any_id)
        if not roots:
            return None
        facts, seen = self._facts(roots), set[str]()
        nodes = [self._node(root, facts, seen) for root in roots if root in facts]
        return Trace(any_id, correlation_id, tuple(node for node in nodes if node is not None))

    def _roots(self, any_id: str) -> tuple[list[str], str]:
        """Return the first events of the chain, and its correlation id; no events when nothing is known."""
        above, event = any_id, self._one(any_id)
        correlation_id = (event.correlation_id if event else None) or any_id
        climbed = [any_id]
        while event is not None and event.follows not in (None, *climbed):
            above = str(event.follows)
            climbed.append(above)
            event = self._one(above)
        if event is not None:
            return [above], correlation_id
        # An event that is retained no more, or the name of a chain, which several events may begin.
        first = self._consequences(above)[0]
        caused = any(_cause(event) == above for event in self._history.events(first).values())
        return [above] if caused else first or climbed[-2:-1], correlation_id

    def _one(self, event_id: str) -> Event | None:
        return self._history.events([event_id]).get(event_id)

    def _consequences(self, event_id: str) -> tuple[list[str], int]:
        return self._all_consequences([event_id])[0]

    def _all_consequences(self, event_ids: Sequence[str]) -> list[tuple[list[str], int]]:
        """Return of each event the first that it caused, and how many more there are."""

        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for event_id in event_ids:
                    pipe.zrange(self._keys.caused(event_id), 0, _MAX_CONSEQUENCES - 1)
                    pipe.zcard(self._keys.caused(event_id))
                return pipe.execute()

        replies = attempt(self._settings, "reading what events caused", read)
        return [
            ([child.decode() for child in first], count - len(first))
            for first, count in zip(replies[::2], replies[1::2], strict=True)
        ]

    def _facts(self, roots: Sequence[str]) -> dict[str, _Fact]:
        """Read the events below *roots*, level by level."""
        facts: dict[str, _Fact] = {}
        level = list(dict.fromkeys(roots))
        for _ in range(_MAX_DEPTH):
            level = level[: _MAX_EVENTS - len(facts)]
            if not level:
                break
            events = self._history.events(level)
            entries = self._history.entry_ids(level)
            tasks = self._outcomes.of_events({event_id: event.type for event_id, event in events.items()}, entries)
            below: list[str] = []
            for event_id, (children, hidden) in zip(level, self._all_consequences(level), strict=True):
                event, entry_id = events.get(event_id), entries.get(event_id, "")
                facts[event_id] = _Fact(event, entry_id, children, hidden, tasks.get(event_id, []))
                below += children
            level = [event_id for event_id in dict.fromkeys(below) if event_id not in facts]
        return facts

    def _node(self, event_id: str, facts: Mapping[str, _Fact], seen: set[str]) -> EventNode | None:
        """Return an event with all that came of it; None when it is shown elsewhere: anybody may write a circle."""
        if event_id in seen:
            return None
        seen.add(event_id)
        fact = facts[event_id]
        by_task: dict[str, list[EventNode]] = defaultdict(list)
        hidden = fact.hidden
        for child in fact.children:
            if child not in facts:
                hidden += 1
            elif (node := self._node(child, facts, seen)) is not None:
                by_task[_publisher(facts[child].event)].append(node)
        tasks = [replace(task, events=tuple(by_task.pop(task.task_id, ()))) for task in fact.tasks]
        others = by_task.pop("", [])
        tasks += [replace(task, events=tuple(by_task[task.task_id])) for task in self._outcomes.of_strangers(by_task)]
        event = fact.event
        return EventNode(
            event_id,
            event.type if event else "",
            (event.source if event else None) or "",
            int(fact.entry_id.partition("-")[0] or 0),
            tuple(tasks),
            tuple(others),
            hidden,
        )


def _cause(event: Event | None) -> Any:
    return (event.metadata or {}).get("causationId") if event else None


def _publisher(event: Event | None) -> str:
    """Return the id of the task that published an event; empty when it was none."""
    task_id = (event.metadata or {}).get("taskId") if event else None
    return task_id if isinstance(task_id, str) and len(task_id) <= _MAX_TASK_ID else ""

"""What a replay would do: which tasks would run again, and what would follow from the events that they publish."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from celery import Celery

from bridge.events import Event
from bridge.handlers import Handler, registry
from bridge.operations.history import History
from bridge.operations.replay_sources import ReplayItem
from bridge.operations.task_states import TaskNode, TaskStates
from bridge.operations.trace import publisher_of
from bridge.storage import MAX_INDEXED, Storage

T = TypeVar("T")

#: Events that are looked up in one step.
_PAGE = 100
#: Handlers that a sentence names; further ones are counted.
_NAMED = 8


@dataclass
class Impact:
    """What a replay would do.

    Arguments:
        events: How many events it replays.
        tasks: How many tasks run, by handler.
        succeeded: How many of these had succeeded before, by handler.
        published: How many events the last runs of these tasks published, and the tasks that followed from these. A
            replay publishes as many again, if the handlers do the same again.
        following: How many tasks of this application these events ran, by handler.
        complete: Whether all was counted; otherwise it took too long, or some of it has expired.
    """

    events: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    succeeded: Counter[str] = field(default_factory=Counter)
    published: int = 0
    following: Counter[str] = field(default_factory=Counter)
    complete: bool = True

    def sentences(self) -> list[str]:
        """Return what the replay would do, for people."""
        if not self.tasks:
            return ["no task would run: this application has no handler for these events, or where= rejects them"]
        least = "" if self.complete else "at least "
        found = [f"{least}{_counted(self.tasks.total(), 'task')} would run: {_by_handler(self.tasks)}"]
        if again := self.succeeded.total():
            which = "all of them" if self.succeeded == self.tasks else _by_handler(self.succeeded)
            found.append(f"{least}{again} had succeeded before and would run again: {which}")
        follows = "what they publish are new events, which run their handlers in every application on this bus"
        if self.published:
            tasks = f", with {_counted(self.following.total(), 'task')} of this application" if self.following else ""
            names = f": {_by_handler(self.following)}" if self.following else ""
            follows += f"; last time {least}{_counted(self.published, 'event')} followed{tasks}{names}"
        return [*found, follows]


class ImpactReader:
    """Counts what a replay would do, without changing anything.

    Arguments:
        app: Its handlers must be imported.
        storage: The bus, as the group of the application sees it.
        limit_s: How long to count; after that the impact stays incomplete.
    """

    def __init__(self, app: Celery, storage: Storage, limit_s: float = math.inf) -> None:
        self._max_hops = storage.settings.max_hops
        self._history = History(storage)
        self._task_states = TaskStates(app, storage)
        self._late_at_s = time.monotonic() + limit_s
        self.impact = Impact()

    def read(self, items: Iterable[ReplayItem]) -> Iterator[tuple[ReplayItem, dict[str, bool]]]:
        """Yield each item with the handlers that would run, and whether they had succeeded on it; count all of them.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        remaining = iter(items)
        while page := list(islice(remaining, _PAGE)):
            yield from self._read_page(page)
            if self._late() and next(remaining, None) is not None:
                self.impact.complete = False
                return

    def _read_page(self, page: Sequence[ReplayItem]) -> Iterator[tuple[ReplayItem, dict[str, bool]]]:
        impact, repeated = self.impact, dict[str, set[str]]()
        runs = self._task_states.recorded({one.event_id: one.event_type for one in page if one.event is not None})
        for item in page:
            found: dict[str, bool] = {}
            if item.event is not None:
                latest = _latest_runs(runs[item.event_id])
                for name in _handlers_of(item, item.event):
                    found[name] = name in latest and latest[name].state == "SUCCESS"
                    if name in latest:
                        repeated.setdefault(item.event_id, set()).add(latest[name].task_id)
                impact.events += 1
                impact.tasks.update(found.keys())
                impact.succeeded.update(name for name, succeeded in found.items() if succeeded)
            yield item, found
        self._follow(repeated)

    def _follow(self, repeated: Mapping[str, set[str]]) -> None:
        """Count what follows if these tasks, given by the id of their event, publish again what they published."""
        events = [event for cause, event in self._caused(repeated) if publisher_of(event) in repeated[cause]]
        for _ in range(self._max_hops):
            if not events:
                return
            self.impact.published += len(events)
            outdated: dict[str, set[str]] = {}  # runs whose events do not count: their handler has run again since
            for page in self._pages(events):
                for event_id, nodes in self._task_states.recorded({one.id: one.type for one in page}).items():
                    latest = _latest_runs(nodes)
                    self.impact.following.update(latest.keys())
                    outdated[event_id] = {node.task_id for node in nodes} - {run.task_id for run in latest.values()}
            events = [event for cause, event in self._caused(outdated) if publisher_of(event) not in outdated[cause]]

    def _caused(self, event_ids: Iterable[str]) -> Iterator[tuple[str, Event]]:
        """Yield the events that these caused, each with the id of its cause."""
        for page in self._pages(list(event_ids)):
            by_child: dict[str, str] = {}
            for cause, (children, total) in zip(page, self._history.consequences(page, MAX_INDEXED), strict=True):
                by_child |= dict.fromkeys(children, cause)
                self.impact.complete &= total < MAX_INDEXED  # the index holds no more
            events = self._history.events(list(by_child))
            self.impact.complete &= len(events) == len(by_child)
            yield from ((by_child[event_id], event) for event_id, event in events.items())

    def _pages(self, all_of_them: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield them in pages, as long as there is time."""
        for start in range(0, len(all_of_them), _PAGE):
            if self._late():
                self.impact.complete = False
                return
            yield all_of_them[start : start + _PAGE]

    def _late(self) -> bool:
        return time.monotonic() > self._late_at_s


def _handlers_of(item: ReplayItem, event: Event) -> Iterator[str]:
    """Yield the names of the handlers that a replay of *item* would run."""
    for handler in registry.matching(event.type):
        if item.handler in ("", handler.task_name) and _accepts(handler, event):
            yield handler.task_name


def _accepts(handler: Handler, event: Event) -> bool:
    try:
        return handler.where is None or bool(handler.where(event))
    except Exception:  # noqa: BLE001  # user code: the replay would write a dead letter
        return False


def _latest_runs(nodes: Iterable[TaskNode]) -> dict[str, TaskNode]:
    """Return the last run of each handler that succeeded, or else the last one."""
    latest: dict[str, TaskNode] = {}
    for node in nodes:
        before = latest.get(node.handler)
        if node.state and (before is None or node.state == "SUCCESS" or before.state != "SUCCESS"):
            latest[node.handler] = node
    return latest


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _by_handler(counts: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(_NAMED))
    rest = len(counts) - _NAMED
    return f"{shown} and {_counted(rest, 'other handler')}" if rest > 0 else shown

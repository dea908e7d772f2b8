"""The states of the tasks of events, from the ledger, the dead letters and Celery's result backend.

The ledger knows every task from its dispatch until long after its end. A task that it does not know, for example after
Redis lost data, is looked up in the result backend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from celery import Celery

from bridge.handlers import registry, task_id_for
from bridge.operations.history import History
from bridge.redis import attempt
from bridge.storage import DeadLetter, Storage, TaskStatus

#: How many replays of an event are looked up, the newest first.
_MAX_REPLAYS = 10
#: Most tasks that are looked up in the result backend, and the longest wait for it.
_MAX_LOOKUPS = 50
_BACKEND_WAIT_S = 2.0
#: How long a result backend that did not answer is not queried again: a trace looks up many events.
_BACKEND_PAUSE_S = 10.0


@dataclass(frozen=True)
class TaskNode:
    """One task of an event.

    Arguments:
        state: ``WAITING`` (its event is not dispatched yet), ``SENT``, ``STARTED``, ``RETRY``, ``SUCCESS``, ``FAILURE``
            (became a dead letter), ``GIVEN_UP`` (has a dead letter, but may still run), ``SKIPPED`` (``where`` returned
            false, or the handler is newer than the event), or a state of the result backend.
        handler: Name of the task; empty if it is unknown.
        queue, runtime_s: The queue of its message and the duration of its last run, if they are known.
        detail: Reason and error text of the dead letter.
        dead_letter_id: Id of the dead letter, as long as that exists and can be retried.
        replay: Name of the replay that it belongs to, or empty.
        events: The events that it published.
    """

    task_id: str
    handler: str
    state: str
    queue: str = ""
    runtime_s: float | None = None
    detail: str = ""
    dead_letter_id: str = ""
    replay: str = ""
    events: tuple[EventNode, ...] = ()


@dataclass(frozen=True)
class EventNode:
    """One event.

    Arguments:
        event_type, source: Empty if the event has expired.
        at_ms: When it was appended to the journal, ms since the epoch; 0 if that is unknown.
        tasks: Its tasks in this application.
        events: Events that it caused, except those that these tasks published.
        hidden: How many further events that it caused are not shown, see :func:`further`.
        trace_id: The trace of OpenTelemetry, or of another program, in which it was published; empty without one.
    """

    event_id: str
    event_type: str
    source: str
    at_ms: int
    tasks: tuple[TaskNode, ...] = ()
    events: tuple[EventNode, ...] = ()
    hidden: int = 0
    trace_id: str = ""


class TaskStates:
    """Looks up the tasks of events, for one application.

    Arguments:
        app: Its handlers must be imported.
        storage: The bus, as the group of the application sees it.
    """

    def __init__(self, app: Celery, storage: Storage) -> None:
        self._app = app
        self._client = storage.client
        self._settings = storage.settings
        self._keys = storage.keys
        self._history = History(storage)
        self._ledger = storage.ledger
        self._dead_letters = storage.dead_letters
        self._backend_due_at_s = 0.0

    def states(self, events: Sequence[tuple[str, str]]) -> list[list[TaskNode]]:
        """Return the tasks of events, given by id and type: the newest run of each handler, without published events.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        ids = [event_id for event_id, _ in events]
        tasks = self.of_events(dict(events), self._history.entry_ids(ids))
        return [list({task.handler: task for task in tasks[event_id]}.values()) for event_id in ids]

    def recorded(self, types: Mapping[str, str]) -> dict[str, list[TaskNode]]:
        """Return the tasks of events as the ledger knows them, by event id; those without a state are unknown to it.

        For each handler the first run comes first, then those of replays, the oldest first.

        Arguments:
            types: Event type, by event id.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        group, replays = self._settings.group, self._replays(list(types))
        runs = [
            (event_id, handler.task_name, replay, task_id_for(group, event_id, handler.task_name, replay or None))
            for event_id, event_type in types.items()
            for handler in registry.matching(event_type)
            for replay in ("", *replays[event_id])
        ]
        statuses = self._statuses([task_id for *_, task_id in runs])
        found: dict[str, list[TaskNode]] = {event_id: [] for event_id in types}
        for event_id, handler, replay, task_id in runs:
            found[event_id].append(_task(task_id, handler, replay, statuses[task_id]))
        return found

    def of_events(self, types: Mapping[str, str], entry_ids: Mapping[str, str]) -> dict[str, list[TaskNode]]:
        """Return the tasks of events, by event id: for each handler the first run, then those of replays.

        Arguments:
            types: Event type, by event id.
            entry_ids: Stream id in the journal, by event id, as far as known.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        runs = [(event_id, node) for event_id, nodes in self.recorded(types).items() for node in nodes]
        waiting = self._waiting({event_id for event_id, node in runs if not node.state}, entry_ids)
        nodes = [
            replace(node, state="WAITING") if event_id in waiting and not (node.state or node.replay) else node
            for event_id, node in runs
        ]
        nodes = self._with_dead_letters(self._from_backend(nodes))
        found: dict[str, list[TaskNode]] = {event_id: [] for event_id in types}
        for (event_id, _), node in zip(runs, nodes, strict=True):
            if node.state or not node.replay:  # a replay may have been for another handler
                found[event_id].append(replace(node, state=node.state or "SKIPPED"))
        return found

    def of_unknown_tasks(self, task_ids: Iterable[str]) -> list[TaskNode]:
        """Return tasks without a handler in this application: of another application, or renamed.

        Raises:
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        statuses = self._statuses(list(task_ids))
        nodes = [_task(task_id, "", "", status) for task_id, status in statuses.items()]
        return [
            replace(node, state=node.state or "UNKNOWN") for node in self._with_dead_letters(self._from_backend(nodes))
        ]

    def _statuses(self, task_ids: Sequence[str]) -> dict[str, TaskStatus]:
        if not task_ids:
            return {}
        statuses = attempt(self._settings, "reading the ledger", lambda: self._ledger.task_statuses(task_ids))
        return dict(zip(task_ids, statuses, strict=True))

    def _replays(self, event_ids: Sequence[str]) -> dict[str, list[str]]:
        def read() -> list[Any]:
            with self._client.pipeline(transaction=False) as pipe:
                for event_id in event_ids:
                    pipe.zrange(self._keys.replays(self._settings.group, event_id), -_MAX_REPLAYS, -1)
                return pipe.execute()

        replies = attempt(self._settings, "reading which events were replayed", read)
        return {event_id: [name.decode() for name in names] for event_id, names in zip(event_ids, replies, strict=True)}

    def _waiting(self, event_ids: Iterable[str], entry_ids: Mapping[str, str]) -> set[str]:
        """Return the events that the group has not dispatched yet."""
        entries = {event_id: entry_ids[event_id] for event_id in event_ids if event_id in entry_ids}
        if not entries:
            return set()
        waiting = attempt(
            self._settings, "reading the journal", lambda: self._history.undispatched(list(entries.values()))
        )
        return {event_id for event_id, entry_id in entries.items() if entry_id in waiting}

    def _with_dead_letters(self, nodes: Sequence[TaskNode]) -> list[TaskNode]:
        wanted = [node.dead_letter_id for node in nodes if node.dead_letter_id]
        dead_letters = self._dead_letters.by_id(wanted) if wanted else {}
        dead_letters = {
            dead_letter_id: dead_letter.redacted_by(self._settings.redaction)
            for dead_letter_id, dead_letter in dead_letters.items()
        }
        return [
            _with_dead_letter(node, dead_letters.get(node.dead_letter_id)) if node.dead_letter_id else node
            for node in nodes
        ]

    def _from_backend(self, nodes: Sequence[TaskNode]) -> list[TaskNode]:
        """Fill in the states that the ledger does not know."""
        unknown = [node.task_id for node in nodes if not node.state][:_MAX_LOOKUPS]
        states: dict[str, str] = {}

        def look_up() -> None:
            for task_id in unknown:
                states[task_id] = str(self._app.AsyncResult(task_id).state)

        if unknown and time.monotonic() >= self._backend_due_at_s:
            # In a separate thread, because Celery retries a backend that is unavailable.
            thread = threading.Thread(target=_quietly, args=(look_up,), name="bridge-results", daemon=True)
            thread.start()
            thread.join(_BACKEND_WAIT_S)
            if len(states) < len(unknown):
                self._backend_due_at_s = time.monotonic() + _BACKEND_PAUSE_S
        known = {task_id: state for task_id, state in states.copy().items() if state != "PENDING"}
        return [replace(node, state=node.state or known.get(node.task_id, "")) for node in nodes]


def _task(task_id: str, handler: str, replay: str, status: TaskStatus) -> TaskNode:
    """Return a task as the ledger knows it; without a state if the ledger does not."""
    ended, running, sent = status
    if ended is not None:
        runtime_s = None if ended.runtime_ms < 0 else ended.runtime_ms / 1000
        state = "FAILURE" if ended.dead_letter_id else "SUCCESS"
        return TaskNode(
            task_id, handler, state, ended.queue, runtime_s, dead_letter_id=ended.dead_letter_id, replay=replay
        )
    queue = sent.queue if sent else ""
    given_up = sent.given_up if sent else ""
    state = "STARTED" if running else "GIVEN_UP" if given_up else ("RETRY" if sent.retried else "SENT") if sent else ""
    handler = handler or (sent.handler if sent else "")
    return TaskNode(task_id, handler, state, queue, dead_letter_id=given_up, replay=replay)


def _with_dead_letter(node: TaskNode, dead_letter: DeadLetter | None) -> TaskNode:
    if dead_letter is None:
        return replace(
            node, detail="its dead letter no longer exists: it was retried, purged or evicted", dead_letter_id=""
        )
    return replace(
        node, handler=node.handler or dead_letter.handler, detail=f"{dead_letter.reason}: {dead_letter.detail}"
    )


def _quietly(do: Callable[[], None]) -> None:
    with suppress(Exception):  # whatever a backend raises: the states of the ledger are returned without it
        do()

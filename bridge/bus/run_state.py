"""What the bridge keeps on Celery's request while a task runs in a worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from celery import current_app

#: Attribute of the request. A task that calls itself as a function gets a copy of its request, with the same state.
_ATTRIBUTE = "bridge_run"


@dataclass
class RunState:
    """One run of a task, of a handler or of a subtask.

    Arguments:
        published: How many events of each type this run has published.
        began_s: When the handler's lease was taken, by the monotonic clock; None before, and in other tasks.
        has_effect_transaction: Whether this run has entered its effect transaction.
    """

    published: Counter[str] = field(default_factory=Counter)
    began_s: float | None = None
    has_effect_transaction: bool = False


def run_state(request: Any) -> RunState:
    """Return the state of the run that Celery's *request* describes."""
    attributes = request.__dict__
    state: RunState | None = attributes.get(_ATTRIBUTE)
    if state is None:
        state = attributes[_ATTRIBUTE] = RunState()
    return state


def current_request() -> Any:
    """Return the request of the task that is running in this thread; None outside a worker's task."""
    # Not current_task: a handler called as a plain function inside a task belongs to that task's run.
    task = current_app.current_worker_task
    return None if task is None else task.request

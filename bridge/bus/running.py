"""Which task the running code belongs to, also in threads that a handler starts.

Celery knows the tasks of each thread. A context variable carries the task into ``asyncio.to_thread()`` and into
``contextvars.copy_context()``. Other threads have no context: they belong to the only task that runs in this process.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from celery import current_app
from celery.signals import task_postrun, task_prerun

#: The requests of the tasks that run in each thread, by its identifier: tasks that a task runs eagerly are nested.
_running: dict[int, list[Any]] = {}
#: The threads that no task has started: those that existed before this process ran a task, and those that run tasks.
_independent: WeakSet[threading.Thread] | None = None
#: The request of the task that ended last.
_last: Any = None
_in_context: ContextVar[Any] = ContextVar("bridge_running_task", default=None)


@dataclass(frozen=True)
class Origin:
    """The task that the running code belongs to.

    Arguments:
        request: Celery's request of the task; None outside a task, or if the task is not known.
        ordered: The code runs in the task's own thread, so it publishes in the same order each time the task runs.
        candidates: Requests of the tasks that it may belong to, if that is not known.
    """

    request: Any = None
    ordered: bool = True
    candidates: tuple[Any, ...] = ()


def origin() -> Origin:
    """Return the task that the running code belongs to."""
    # Not current_task: a handler called as a plain function inside a task belongs to that task's run.
    task = current_app.current_worker_task
    if task is not None:
        return Origin(task.request)
    request = _in_context.get()
    if request is not None:
        return Origin(request, ordered=False)
    if _independent is None or threading.current_thread() in _independent:
        return Origin()
    running = [requests[-1] for requests in list(_running.values()) if requests]
    if len(running) == 1:
        return Origin(running[0], ordered=False)
    return Origin(candidates=tuple(running or [_last]))  # or a thread that has outlived its task


def runs_tasks() -> bool:
    """Whether a task is running in this process."""
    return bool(_running)


def current_request() -> Any:
    """Return the request of the task that the running code belongs to; None outside a worker's task."""
    return origin().request


def install_tracking() -> None:
    """Keep track of the tasks that run in this process. Can be called more than once."""
    task_prerun.connect(_began, weak=False, dispatch_uid="bridge.task_began")
    task_postrun.connect(_ended, weak=False, dispatch_uid="bridge.task_ended")


def _began(task: Any = None, **_: Any) -> None:
    global _independent  # noqa: PLW0603  # the state of a process
    if _independent is None:
        _independent = WeakSet(threading.enumerate())
    _independent.add(threading.current_thread())
    request = task.request
    _running.setdefault(threading.get_ident(), []).append(request)
    _in_context.set(request)


def _ended(task: Any = None, **_: Any) -> None:
    global _last  # noqa: PLW0603  # the state of a process
    requests = _running.get(threading.get_ident())
    if requests:
        _last = requests.pop()
    if not requests:
        _running.pop(threading.get_ident(), None)
    _in_context.set(requests[-1] if requests else None)

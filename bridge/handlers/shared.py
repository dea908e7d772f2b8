"""The task of a handler in each Celery application of the process, with the task class of that application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from celery import Task, _state
from celery.local import Proxy

from bridge.config import is_pickle
from bridge.errors import InvalidHandler
from bridge.handlers.task import EventTask

WHY_NO_PICKLE = "allows anyone who can write to the queue to run any code; use 'json'"


def shared_handler(function: Callable[..., Any], name: str, base: type[Any] | None, **options: Any) -> EventTask:
    """Make a task of each application of the process, also of those that are created later, as ``shared_task`` does.

    ``shared_task`` itself takes the same base class for all applications.

    Arguments:
        base: Base class of the task in all applications; None for the task class of each application.
        options: Attributes of the task.

    Returns:
        The task of the current application, whichever that is when it is used.

    Raises:
        InvalidHandler: The task class of an application that is already in use sets pickle as its serializer.
    """

    def add_to(app: Any) -> None:  # Celery's stubs know nothing of what follows
        app._task_from_fun(function, name=name, base=handler_class(base or app.Task), **options)

    state = cast("Any", _state)
    state.connect_on_app_finalize(add_to)
    for app in state._get_active_apps():
        if app.finalized:
            with app._finalize_mutex:
                add_to(app)
    return cast("EventTask", Proxy(lambda: state.get_current_app().tasks[name]))


def handler_class(base: type[Any]) -> type[EventTask]:
    """Return *base* with what a handler's task needs: itself, or a class that :class:`EventTask` comes first in.

    So a ``__call__``, hooks and attributes of *base* apply to handlers, except those that :class:`EventTask` sets.

    Raises:
        InvalidHandler: Its serializer is pickle.
    """
    if is_pickle(base.serializer):
        set_by = next(one for one in base.__mro__ if "serializer" in vars(one))  # not the class that Celery derives
        raise InvalidHandler(f"{set_by!r} has serializer={base.serializer!r}, which {WHY_NO_PICKLE}")
    if issubclass(base, EventTask):
        return base
    # The application may have its own classes for messages in workers, but handlers need those of the bridge.
    attributes: dict[str, Any] = {"abstract": True, "Strategy": Task.Strategy}
    return type("EventTask", (EventTask, base), attributes)

"""The queues that a worker takes tasks from: those of its handlers, too, unless its queues were chosen explicitly."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from celery import Celery


def take_queues(app: Celery, names: Iterable[str], excluded: Collection[str] = ()) -> None:
    """Let a worker of *app*, which is about to start, take tasks from these queues, too.

    Its queues are chosen explicitly if it has the option ``-Q``, or if ``task_queues`` is set. Then it takes those
    only.

    Arguments:
        names: Names of queues that Celery's router knows.
        excluded: The queues that the option ``-X`` excludes.
    """
    queues: Any = app.amqp.queues  # its stubs know no queues that are selected
    if queues._consume_from is not None or app.conf.task_queues:
        return
    for name in sorted(set(names) - set(excluded)):
        queues.select_add(queues[name])


def excluded_queues(options: dict[str, Any]) -> set[str]:
    """Return the queues that the option ``-X`` of a worker excludes, from its options."""
    given = options.get("exclude_queues") or []
    return set(given.split(",") if isinstance(given, str) else given)

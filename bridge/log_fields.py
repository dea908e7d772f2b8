"""What the log lines about tasks and dead letters carry."""

from __future__ import annotations

from typing import Any

from celery import Task

from bridge.dead_letters import DeadLetter
from bridge.event import Event
from bridge.logs import Action, about
from bridge.publishing import get_bus

#: Characters of an event's id or type that are shown: somebody may have sent anything by hand.
_SHOWN_CHARS = 200


def about_task(
    action: Action,
    task: Task[..., Any],
    task_id: str | None,
    event: Event[Any] | dict[str, Any] | None,
    reason: str = "",
) -> dict[str, Any]:
    """Return ``extra`` of a log call about a task and its event, which may be as it came with the message."""
    event_id = event_type = ""
    if isinstance(event, Event):
        event_id, event_type = event.id, event.type
    elif isinstance(event, dict):
        event_id, event_type = (str(event.get(name, ""))[:_SHOWN_CHARS] for name in ("id", "type"))
    return about(
        action,
        event_id=event_id,
        event_type=event_type,
        task_id=task_id,
        handler=task.name,
        group=get_bus().settings.group,
        reason=reason,
    )


def about_letter(action: Action, letter: DeadLetter, group: str) -> dict[str, Any]:
    """Return ``extra`` of a log call about a dead letter."""
    return about(
        action,
        event_id=letter.event_id,
        event_type=letter.event_type,
        task_id=letter.task_id,
        handler=letter.handler,
        group=group,
        reason=letter.reason,
        origin=letter.origin,
    )

"""What the other modules of this part need of a handler's Celery task."""

from __future__ import annotations

from typing import Any, Protocol

from bridge.events import Event

#: Maximum length of an event's id or type in a log line: anyone can send such a task by hand.
_LOGGED_CHARS = 200


class HandlerTask(Protocol):
    """What a run needs of its Celery task, an ``EventTask``."""

    name: str
    acks_late: bool
    reject_on_worker_lost: bool
    retry_on_worker_lost: bool
    idempotent: bool
    time_limit: Any
    soft_time_limit: Any
    event_model: type[Event[Any]]
    ignore_result: bool

    @property
    def backend(self) -> Any:
        """The result backend."""

    @property
    def call_handler(self) -> Any:
        """The handler's function, with what the application puts around it."""

    def signature_from_request(self, request: Any = ..., **options: Any) -> Any:
        """Return the message of *request*, to be sent again."""

    def send_event(self, type_: str, **fields: Any) -> Any:
        """Send a worker event."""


def ends_with_worker(task: HandlerTask) -> bool:
    """Return whether the application wants that a task does not run again when its process has crashed."""
    return not (task.reject_on_worker_lost or task.retry_on_worker_lost)


def facts_of(task: HandlerTask, task_id: str, fields: Any, group: str) -> dict[str, Any]:
    """Return the fields of a log line about a run.

    Arguments:
        fields: The argument of the task: an event as JSON, unless the task was sent by hand.
    """
    event = fields if isinstance(fields, dict) else {}
    return {
        "event_id": str(event.get("id", ""))[:_LOGGED_CHARS],
        "event_type": str(event.get("type", ""))[:_LOGGED_CHARS],
        "task_id": task_id,
        "handler": task.name,
        "group": group,
    }

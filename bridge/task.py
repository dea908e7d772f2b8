"""The Celery task behind a handler: its event, once, in context; a dead letter when it cannot be.

Tasks run at least once: a worker may die after the effect and before its acknowledgement. The done mark makes the
repetition harmless. It is written after the task's effect, so a crash exactly between the two runs the task again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request
from kombu.exceptions import OperationalError

from bridge.bus import EventBus
from bridge.connection import attempt
from bridge.context import count_publications, handling
from bridge.dead_letters import DeadLetter, DeadLetters
from bridge.errors import BusUnavailable, EventInvalid
from bridge.event import Event
from bridge.keys import Keys
from bridge.publishing import get_bus

log = logging.getLogger(__name__)

#: Pause before a task with early acknowledgement looks for the bus again.
_BUS_AWAY_RETRY_S = 5


class EventRequest(Request):
    """A message of a handler task in a worker."""

    def info(self, safe: bool = False) -> Any:
        """Return what ``inspect reserved`` and Flower show: the short text of the event, never its payload."""
        return super().info(safe=True)


class EventTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """Base class of the tasks that ``@on_event`` makes."""

    abstract = True
    Request = "bridge.task:EventRequest"

    #: A message is acknowledged when its task has ended, so that a killed worker loses none.
    acks_late = True
    reject_on_worker_lost = True

    #: ``Event``, or ``Event[Model]`` for a handler that wants its payload validated.
    event_model: type[Event[Any]] = Event
    #: Options of the decorator that concern sending, e.g. ``queue``. Celery frowns on them as task attributes.
    send_options: Mapping[str, Any] = {}

    def __call__(self, event: Event[Any] | dict[str, Any]) -> Any:
        """Run the handler: from a worker with the event as JSON, or called as a plain function, as in a test."""
        request = self.request
        if request.called_directly or isinstance(event, Event):
            return self._run(event, super().__call__)
        if request.is_eager:
            return self._run(event, self.run)
        return self._run_once(event)

    def apply_async(  # type: ignore[override]  # options pass through, whatever Celery takes
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Send the task, with the options of the decorator as defaults and a short text of its event."""
        options = {**self.send_options, **options}
        if args:
            options.setdefault("argsrepr", describe(args[0]))
        return super().apply_async(args, kwargs, **options)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Keep the event of a task that failed for good as a dead letter. Called by Celery after the last retry."""
        event = args[0] if args else None
        if self.request.is_eager or not isinstance(event, dict):
            return
        try:
            self._park("failure", f"{type(exc).__name__}: {exc}", Event.from_dict(event), task_id)
        except (BusUnavailable, EventInvalid) as error:
            log.error("no dead letter for %s of task %s: %s", describe(event), task_id, error)

    def _run(self, event: Event[Any] | dict[str, Any], run: Any) -> Any:
        typed = event if isinstance(event, self.event_model) else self.event_model.model_validate(event)
        with handling(typed):
            return run(typed)

    def _run_once(self, event: dict[str, Any]) -> Any:
        task_id = str(self.request.id)
        bus = get_bus()
        done_mark = Keys(bus.settings.channel_prefix).done(task_id)
        try:
            if attempt(bus.settings, f"checking task {task_id}", lambda: bus.client.exists(done_mark)):
                self._announce("task-deduplicated")
                raise Ignore
            typed = self._validated(event, task_id)
        except BusUnavailable as error:
            # Nothing has run yet: the message goes back, or, acknowledged already, out again.
            if self.acks_late:
                raise Reject(str(error), requeue=True) from error
            raise self.retry(exc=error, countdown=_BUS_AWAY_RETRY_S, max_retries=None) from error
        count_publications(self.request)
        with handling(typed):
            result = self.run(typed)
        self._mark_done(bus, done_mark)
        return result

    def _validated(self, event: dict[str, Any], task_id: str) -> Event[Any]:
        try:
            return self.event_model.from_dict(event)
        except EventInvalid as error:
            # What somebody sent by hand and is no event at all fails here, as any task does.
            whole = Event.from_dict(event)
            # No retry can mend it. The result says FAILURE to who waits for it; Ignore keeps the state that
            # the custom event gives the task in Flower.
            self._park("payload", str(error), whole, task_id)
            self.backend.mark_as_failure(task_id, error, request=self.request, store_result=not self.ignore_result)
            raise Ignore from error

    def _park(self, reason: str, detail: str, event: Event[Any], task_id: str) -> None:
        bus = get_bus()
        letter = DeadLetter.of_event(reason, detail, event, event.encode(), handler=self.name, task_id=task_id)
        letters = DeadLetters(bus.client, bus.settings)
        attempt(bus.settings, f"writing a dead letter for {event!r}", lambda: letters.add(letter))
        log.warning("dead letter (%s): %s of %r", reason, self.name, event)
        self._announce("task-deadlettered", reason=reason, exception=detail)

    def _mark_done(self, bus: EventBus, done_mark: str) -> None:
        try:
            attempt(
                bus.settings,
                f"marking task {self.request.id} as done",
                lambda: bus.client.set(done_mark, b"1", px=bus.settings.dedup_ttl_ms),
            )
        except BusUnavailable as error:
            # The effect has happened: failing the task now would be untrue.
            log.error("task %s may run again if its message is delivered again: %s", self.request.id, error)

    def _announce(self, event_type: str, **fields: Any) -> None:
        """Send a custom worker event; Flower shows it as the state of the task."""
        try:
            self.send_event(event_type, retry=False, **fields)
        except (OperationalError, OSError) as error:
            log.warning("monitors were not told %s of task %s: %s", event_type, self.request.id, error)


def describe(event: Any) -> str:
    """Return the arguments of a handler task as Flower and the logs show them: no payload, no secrets."""
    if isinstance(event, dict):
        try:
            event = Event.from_dict(event)
        except EventInvalid:
            return "(<Event invalid>,)"
    return f"({event!r},)" if isinstance(event, Event) else "(...)"

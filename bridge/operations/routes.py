"""Which tasks run for an event type, and the queues that these are sent to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from celery import Celery

from bridge.broker import Outbox
from bridge.config import BridgeSettings
from bridge.events import Event, compile_pattern, example_of
from bridge.handlers import EventTask, Handler, registry

#: Attributes of a task that matter to operators, with the default values, which are not shown.
_TASK_OPTIONS = {
    "expires": None,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "idempotent": True,
    "max_retries": 3,
}


@dataclass(frozen=True)
class HandlerRoute:
    """The queue and the options of the tasks of one handler, for one pattern.

    Arguments:
        handler: Name of the task.
        events: The event type or glob that this route is for.
        queue: Name of the queue; empty if there is a *problem*.
        options: Options for sending and running the task that differ from the defaults.
        rule: The pattern of ``bridge_routes`` that applies, or empty.
        where: Whether the handler has a predicate.
        payload: Name of the model that validates payloads, or empty.
        defined_at: File and line of the function.
        problem: Why the task cannot be sent.
    """

    handler: str
    events: str
    queue: str
    options: dict[str, Any]
    rule: str
    where: bool
    payload: str
    defined_at: str
    problem: str = ""


def routes_of(app: Celery, settings: BridgeSettings) -> Iterator[HandlerRoute]:
    """Yield the routes of all handlers: one for each pattern, and one for each rule that changes the route."""
    outbox = Outbox(app, settings)
    for handler in sorted(registry, key=lambda handler: handler.task_name):
        own = [_route(app, settings, outbox, handler, pattern, example_of(pattern)) for pattern in handler.patterns]
        yield from own
        shown = {(route.queue, repr(route.options)) for route in own}
        for pattern in settings.routes:
            example = example_of(pattern)
            if pattern not in handler.patterns and handler.matches(example):
                route = _route(app, settings, outbox, handler, pattern, example)
                if (route.queue, repr(route.options)) not in shown:
                    yield route


def routes_for(app: Celery, settings: BridgeSettings, event_type: str) -> Iterator[HandlerRoute]:
    """Yield the route of each handler of one event type."""
    outbox = Outbox(app, settings)
    for handler in registry.matching(event_type):
        yield _route(app, settings, outbox, handler, event_type, event_type)


def _route(
    app: Celery, settings: BridgeSettings, outbox: Outbox, handler: Handler, events: str, event_type: str
) -> HandlerRoute:
    task = cast("EventTask", app.tasks[handler.task_name])
    queue, sending, problem = "", dict(handler.send_options), ""
    try:
        route = outbox.route_of(handler, event_type)
        queue, sending = route.queue, dict(route.options)
    except Exception as error:  # noqa: BLE001  # routers are user code, and Celery refuses options in many ways
        problem = " ".join(f"{type(error).__name__}: {error}".split())
    for name in ("queue", "ignore_result"):
        sending.pop(name, None)
    rule = next((rule for rule in settings.routes if compile_pattern(rule).fullmatch(event_type)), "")
    model = task.event_model
    payload = "" if model is Event else model.__name__.removeprefix("Event[").removesuffix("]")
    options = _shown(sending | _task_options(app, task))
    where = handler.where is not None
    return HandlerRoute(task.name, events, queue, options, rule, where, payload, handler.defined_at, problem)


def _task_options(app: Celery, task: EventTask) -> dict[str, Any]:
    conf = app.conf
    usual = _TASK_OPTIONS | {"serializer": conf.task_serializer, "ignore_result": conf.task_ignore_result}
    usual |= {"time_limit": conf.task_time_limit, "soft_time_limit": conf.task_soft_time_limit}
    usual["rate_limit"] = conf.task_default_rate_limit
    found = {name: getattr(task, name) for name in usual if getattr(task, name) != usual[name]}
    if kinds := getattr(task, "autoretry_for", ()):
        found["autoretry_for"] = [getattr(kind, "__name__", str(kind)) for kind in kinds]
    return found


def _shown(options: dict[str, Any]) -> dict[str, Any]:
    """Return *options* as values of JSON; what JSON cannot hold becomes text."""
    return {name: json.loads(json.dumps(value, default=str)) for name, value in options.items()}

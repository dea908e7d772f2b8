"""``celery -A APP bus routes``: which tasks events become, and where those go."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import click
from celery import Celery

from bridge.cli import output
from bridge.cli.connect import load, told
from bridge.cli.options import json_option
from bridge.errors import EventInvalid
from bridge.event import Event
from bridge.fields import check_type
from bridge.handlers import Handler, registry
from bridge.messages import Outbox
from bridge.patterns import compile_pattern
from bridge.settings import BridgeSettings
from bridge.stored import StoredEvent
from bridge.task import EventTask

_COLUMNS: list[output.Column | str] = [
    output.Column("HANDLER", "bold"),
    "EVENTS",
    output.Column("QUEUE", "cyan"),
    "OPTIONS",
]
#: Attributes of a task that matter to who runs it, and the usual values, which are not shown.
_TASK_OPTIONS = {
    "expires": None,
    "acks_late": True,
    "reject_on_worker_lost": True,
    "idempotent": True,
    "max_retries": 3,
}
#: A part of a glob: an escaped character, a set, or anything else.
_GLOB_PART = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|.", re.DOTALL)
_CHARS = "xabcdefghijklmnopqrstuvwyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."


@dataclass(frozen=True)
class Route:
    """Where the tasks of one handler go for some events.

    Arguments:
        handler: Name of the task.
        events: The event type, or the glob, that this is about.
        queue: Its queue; empty with a *problem*.
        options: For sending and running the task, where they are not the usual ones.
        rule: The pattern of ``bridge_routes`` that applies; empty: none.
        where: Whether the handler chooses among the events by their content.
        payload: Name of the model that payloads have to fit; empty: none.
        defined_at: File and line.
        problem: Why no such task can be sent.
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


@click.command()
@click.option("--match", metavar="TYPE", help="Only what an event of this type becomes.")
@json_option
@click.pass_context
def routes(ctx: click.Context, /, match: str | None, as_json: bool) -> None:
    """List the handlers, and where their tasks go.

    Options are those of @on_event, of bridge_routes and of the task, where they are not the usual ones. Rows marked
    bridge_routes are for events to which that rule applies. Needs no Redis.

    \b
    Example:
      celery -A bridge bus routes
      celery -A bridge bus routes --match dream.created
    """
    app = ctx.obj.app
    settings = load(app)
    with told(settings):
        found = list(routes_of(app, settings) if match is None else _matching(app, settings, match))
    for route in found if as_json else ():
        output.as_json(asdict(route))
    if found and not as_json:
        output.table(_COLUMNS, _rows(found))
    if not found:
        raise click.ClickException(_nothing(match))
    if any(route.problem for route in found):
        raise click.ClickException("some of these tasks cannot be sent; what stands in OPTIONS says why")


def routes_of(app: Celery, settings: BridgeSettings) -> Iterator[Route]:
    """Yield the routes of all handlers: one for each of their patterns, and for each rule that changes something."""
    outbox = _outbox(app, settings)
    for handler in sorted(registry, key=lambda handler: handler.task_name):
        own = [_route(app, settings, outbox, handler, pattern, _example(pattern)) for pattern in handler.patterns]
        yield from own
        shown = {(route.queue, repr(route.options)) for route in own}
        for pattern in settings.routes:
            example = _example(pattern)
            if pattern not in handler.patterns and handler.matches(example):
                route = _route(app, settings, outbox, handler, pattern, example)
                if (route.queue, repr(route.options)) not in shown:
                    yield route


def _outbox(app: Celery, settings: BridgeSettings) -> Outbox:
    app.backend_cls = "disabled"  # Celery would connect to it, to listen for the results of what is rendered only
    return Outbox(app, settings)


def _matching(app: Celery, settings: BridgeSettings, event_type: str) -> Iterator[Route]:
    try:
        check_type(event_type)
    except EventInvalid as error:
        raise click.UsageError(str(error)) from error
    outbox = _outbox(app, settings)
    for handler in registry.matching(event_type):
        yield _route(app, settings, outbox, handler, event_type, event_type)


def _route(
    app: Celery, settings: BridgeSettings, outbox: Outbox, handler: Handler, events: str, event_type: str
) -> Route:
    task = cast("EventTask", app.tasks[handler.task_name])
    queue, sending, problem = "", dict(handler.send_options), ""
    try:
        event = Event(type=event_type, id="example")
        message = outbox.prepare(handler, StoredEvent(event.id, event.type, None, event.encode(), event), b"0-0")
        queue, sending = message.route.queue, dict(message.route.options)
    except Exception as error:  # noqa: BLE001  # routers are user code, and Celery refuses options in many ways
        problem = " ".join(f"{type(error).__name__}: {error}".split())
    sending.pop("queue", None)
    rule = next((rule for rule in settings.routes if compile_pattern(rule).fullmatch(event_type)), "")
    model = task.event_model
    payload = "" if model is Event else model.__name__.removeprefix("Event[").removesuffix("]")
    options = _shown(sending | _task_options(app, task))
    where = handler.where is not None
    return Route(task.name, events, queue, options, rule, where, payload, handler.defined_at, problem)


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
    """Return *options* as JSON can have them: they hold whatever the user wrote."""
    return {name: json.loads(json.dumps(value, default=str)) for name, value in options.items()}


def _rows(found: list[Route]) -> Iterator[tuple[output.Cell, ...]]:
    before = ""
    for route in found:
        texts = ["where"] * route.where + [f"payload={route.payload}"] * bool(route.payload)
        texts += [f"{name}={_short(value)}" for name, value in route.options.items()]
        texts += [f"bridge_routes[{route.rule}]"] * bool(route.rule)
        options: output.Cell = " ".join(texts)
        if route.problem:
            options = output.Styled(route.problem, "red")
        again = output.on_terminal() and route.handler == before
        yield "" if again else route.handler, route.events, route.queue, options
        before = route.handler


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _nothing(match: str | None) -> str:
    if match is None:
        return (
            "there is no handler. Are the modules with @on_event imported? See imports= of the configuration, "
            "and app.autodiscover_tasks()"
        )
    literal = [pattern for handler in registry for pattern in handler.patterns if not set(pattern) & set("*?[\\")]
    guess = difflib.get_close_matches(match, literal, n=1)
    return f"no handler takes {match}" + (f"; did you mean {guess[0]}?" if guess else "")


def _example(pattern: str) -> str:
    """Return an event type that a glob matches, and that nothing else is likely to name."""
    text = ""
    for part in _GLOB_PART.findall(pattern):
        if part in ("*", "?"):
            text += "x"
        elif part[0] == "[":
            fits = compile_pattern(part).fullmatch
            text += next((char for char in _CHARS if fits(char)), "x")
        else:
            text += part[-1]
    return text

"""``celery -A APP bus routes``: the handlers, and the queues of their tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click
from celery import Celery

from bridge.cli import output
from bridge.cli.application import no_handlers_text
from bridge.cli.connect import errors_as_cli_messages, load
from bridge.cli.options import json_option
from bridge.cli.table import Cell, Column, Styled, on_terminal
from bridge.config import BridgeSettings
from bridge.errors import InvalidEvent
from bridge.events import check_type
from bridge.operations import HandlerRoute, routes_for, routes_of

_COLUMNS: list[Column | str] = [
    Column("HANDLER", "bold"),
    "EVENTS",
    Column("QUEUE", "cyan"),
    "OPTIONS",
]


@click.command()
@click.option("--match", metavar="TYPE", help="List only the handlers of this event type.")
@json_option
@click.pass_context
def routes(ctx: click.Context, /, match: str | None, as_json: bool) -> None:
    """List the handlers and the queues of their tasks.

    OPTIONS shows options of @on_event, of bridge_routes and of the task that differ from the defaults. A row marked
    bridge_routes applies to the events of that rule. The command does not connect to Redis.

    \b
    Example:
      celery -A APP bus routes
      celery -A APP bus routes --match dream.created
    """
    app = ctx.obj.app
    settings = load(app)
    with errors_as_cli_messages(settings):
        found = list(routes_of(app, settings) if match is None else _matching(app, settings, match))
    for route in found if as_json else ():
        output.as_json(asdict(route))
    if found and not as_json:
        output.table(_COLUMNS, _rows(found))
    if not found:
        raise click.ClickException(no_handlers_text(match))
    if any(route.problem for route in found):
        raise click.ClickException("some of these tasks cannot be sent; OPTIONS shows why")


def _matching(app: Celery, settings: BridgeSettings, event_type: str) -> Iterator[HandlerRoute]:
    try:
        check_type(event_type)
    except InvalidEvent as error:
        raise click.UsageError(str(error)) from error
    return routes_for(app, settings, event_type)


def _rows(found: list[HandlerRoute]) -> Iterator[tuple[Cell, ...]]:
    before = ""
    for route in found:
        options: Cell = Styled(route.problem, "red") if route.problem else " ".join(_options(route))
        again = on_terminal() and route.handler == before
        yield "" if again else route.handler, route.events, route.queue, options
        before = route.handler


def _options(route: HandlerRoute) -> Iterator[str]:
    if route.where:
        yield "where"
    if route.payload:
        yield f"payload={route.payload}"
    for name, value in route.options.items():
        yield f"{name}={_short(value)}"
    if route.rule:
        yield f"bridge_routes[{route.rule}]"


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

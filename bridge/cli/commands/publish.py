"""``celery -A APP bus publish``: publish one event, or one for each line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import click
from celery import Celery

from bridge.bus import EventBus
from bridge.cli import output
from bridge.cli.application import no_handlers_text
from bridge.cli.connect import open_bus
from bridge.cli.options import json_option
from bridge.cli.publisher import Publisher, parsed_payload
from bridge.cli.receivers import Receivers
from bridge.errors import InvalidEvent
from bridge.events import Event
from bridge.handlers import registry
from bridge.operations import example_payload, models_of


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.argument("payload", metavar="[JSON|-|@FILE]", required=False)
@click.option("--id", "event_id", help="Event id; publishing the same event again has no effect.")
@click.option("--correlation-id", help="Correlation id of the chain of events that it belongs to.")
@click.option("--example", is_flag=True, help="Make a payload that the handlers of the type accept.")
@click.option("--strict", is_flag=True, help="Do not publish what no handler takes or accepts; exit with 1.")
@json_option
@click.pass_context
def publish(
    ctx: click.Context, /, event_type: str, payload: str | None, example: bool, strict: bool, as_json: bool, **ids: Any
) -> None:
    """Publish events.

    The payload is JSON; the default is null. - reads it from standard input, @FILE from a file. If the first line of
    the input is a complete JSON value, each line becomes one event; otherwise the input is one document.
    A line that cannot be published is reported with its number, and the command continues with the next one. Prints the
    id of each event.

    A type that no handler of this application takes, and a payload that the models of its handlers do not accept, are
    published with a warning, since they may be meant for other applications; with --strict they are not published. The
    validators of the models run here, too.

    --example makes the payload from the models of the handlers: from their examples, or else from their types. It is
    printed on standard error.

    \b
    Example:
      celery -A APP bus publish --example dream.created
      celery -A APP bus publish dream.created '{"dreamId": "d1", "text": "I could fly."}'
      celery -A APP bus publish dream.created @dream.json --id d1 --strict
      jq -c '.dreams[]' export.json | celery -A APP bus publish dream.created -
    """
    if example and payload is not None:
        raise click.UsageError("--example makes the payload: give one of the two")
    fields: dict[str, Any] = {"type": event_type, "correlation_id": ids["correlation_id"]}
    if ids["event_id"] is not None:
        fields["id"] = ids["event_id"]
    source = payload if payload is not None and (payload == "-" or payload.startswith("@")) else None
    try:
        given = None if payload is None or source else parsed_payload(payload.encode(errors="surrogateescape"))
        event = Event(**fields, payload=given)
    except InvalidEvent as error:
        hint = ". Write a string with its quotes: '\"text\"'" if error.reason == "json" else ""
        raise click.UsageError(f"{error}{hint}") from error
    with open_bus(ctx.obj.app) as storage, EventBus(storage.settings, log_conflicts=False) as bus:
        if example:
            event = Event(**fields | {"id": event.id}, payload=_example(ctx.obj.app, event_type))
        receivers = Receivers(ctx.obj.app, event_type, strict=strict)
        receivers.check_type()
        publisher = Publisher(bus, receivers, fields, as_json)
        if source is None:
            publisher.publish_one(event)
            return
        with _opened(source) as stream:
            publisher.publish_all(stream, alone="id" in fields)


def _example(app: Celery, event_type: str) -> Any:
    """Return a payload for the handlers of a type, and print it.

    Raises:
        click.ClickException: There is no handler, so that anything would be an example.
        NoExample: None was found.
    """
    if not registry.matching(event_type):
        raise click.ClickException(f"nothing was published: {no_handlers_text(event_type)}")
    payload = example_payload(models_of(app, event_type), event_type)
    output.note("payload: ", json.dumps(payload))
    return payload


@contextmanager
def _opened(payload: str) -> Iterator[BinaryIO]:
    if payload == "-":
        if sys.stdin.isatty():
            output.note("reading JSON from the keyboard; Ctrl-D ends the input")
        yield sys.stdin.buffer
        return
    try:
        stream = open(payload[1:], "rb")  # noqa: SIM115  # closed below; only an error of open() is one of usage
    except OSError as error:
        raise click.UsageError(f"{payload[1:]}: {error.strerror}") from error
    with stream:
        yield stream

"""``celery -A APP bus get``: one event by its id."""

from __future__ import annotations

import click

from bridge.cli import output
from bridge.cli.connect import open_bus
from bridge.cli.ids import look_up
from bridge.cli.options import json_option
from bridge.operations import History


@click.command()
@click.argument("event_id", metavar="ID")
@json_option
@click.pass_context
def get(ctx: click.Context, /, event_id: str, as_json: bool) -> None:
    """Show an event.

    The beginning of its id is enough if no other id begins like it. The event is read from its key or, if that has
    expired, from the journal; values that bridge_redact_paths names are redacted. In a pipe and with --json the output
    is one line.

    \b
    Example:
      celery -A APP bus get 975c7603-5f0c-4b53-a1a4-0b7a5a1d6a2e
      celery -A APP bus get 975c | jq .payload
    """
    with open_bus(ctx.obj.app) as storage:
        settings, event = storage.settings, look_up(storage, event_id, History(storage).event)
        if event is None:
            shown = output.printable(event_id)
            raise click.ClickException(
                f"no event with id {shown} under {settings.channel_prefix} at {settings.redacted_url}. Events are "
                f"retained for {settings.event_ttl_s / 3600:g} h (bridge_event_ttl_s); bus dead list --id {shown} "
                "shows whether it became a dead letter"
            )
    fields = settings.redaction.fields(event.to_dict())
    if as_json:
        output.as_json(fields)
    else:
        output.document(fields)

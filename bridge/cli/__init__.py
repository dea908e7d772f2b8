"""``celery -A APP bus ...``: commands for any Celery application that has the bridge installed.

Celery imports this module for each of its commands, too, so what a command needs is imported when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import click
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]  # it has no types

#: The headings of ``bus --help``, each with its commands and their short help. The short help is repeated here so that
#: the list of commands imports none of them. The module and the function of a command have its name.
COMMANDS: dict[str, list[tuple[str, str]]] = {
    "Events": [
        ("publish", "Publish events."),
        ("get", "Show an event."),
        ("tail", "Show events as they are published."),
        ("trace", "Show the tasks and events that an event caused."),
    ],
    "State": [
        ("status", "Show backlog, subscribers and failures of each group."),
        ("check", "Check servers, settings, permissions, clocks, routes and workers."),
        ("routes", "List the handlers and the queues of their tasks."),
        ("acl", "Print the Redis permissions that a program needs, for ACL SETUSER."),
        ("groups", "List and delete consumer groups, and keep events for one longer."),
    ],
    "Repair": [
        ("dead", "List, inspect, retry and purge dead letters."),
        ("replay", "Run handlers again on past events."),
    ],
    "Run": [
        ("subscribe", "Run a subscriber without a worker."),
        ("dev", "Run Redis, a worker and Flower for development."),
    ],
}
_NAMES = [name for section in COMMANDS.values() for name, _ in section]

_EPILOG = """\b
Exit codes:
  0    success
  1    nothing was found, a check failed, or the command failed in part
  2    invalid usage or invalid settings
  3    Redis or the broker is unreachable or refused the request
  130  interrupted; the last message says how to resume

bus COMMAND --help shows examples.
"""


class _Commands(DYMGroup):  # type: ignore[misc]  # untyped
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _NAMES:
            return None
        return cast("click.Command", getattr(import_module(f"bridge.cli.commands.{cmd_name}"), cmd_name))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would exit with 1, which has another meaning here
            click.echo("interrupted", err=True)
            raise SystemExit(130) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(commands)

    def format_options(self, ctx: click.Context, formatter: Any) -> None:
        self.format_commands(ctx, formatter)


@click.group(name="bus", cls=_Commands, epilog=_EPILOG)
def bus() -> None:
    """Work with the Redis event bus."""

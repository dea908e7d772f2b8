"""``celery -A APP bus ...``: commands for any Celery application that has the bridge installed.

Celery imports this with each of its own commands: what a command needs is imported when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import click
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]  # it has no types

#: Headings of the help, and below each the commands with their short help, which stands here as well so that the list
#: of commands imports none of them. Module and function of a command have its name.
COMMANDS: dict[str, list[tuple[str, str]]] = {
    "Events": [
        ("publish", "Publish events."),
        ("get", "Show an event."),
        ("tail", "Show events as they come."),
        ("trace", "Show what came of an event: tasks, their events, and so on."),
    ],
    "State": [
        ("status", "Show how the groups get on: what waits, who works, what failed."),
        ("check", "Check servers, settings, rights, clocks, routes and workers."),
        ("routes", "List the handlers, and where their tasks go."),
        ("acl", "Print what a kind of program may do on Redis, for ACL SETUSER."),
        ("groups", "Consumer groups of the journal: list them, delete one."),
    ],
    "Repair": [
        ("dead", "Dead letters: what could not be processed."),
        ("replay", "Give events of the journal to the handlers once more."),
    ],
    "Run": [
        ("subscribe", "Turn events into tasks, and run none."),
        ("dev", "Run Redis, a worker and Flower for development, and show the events."),
    ],
}
_NAMES = [name for section in COMMANDS.values() for name, _ in section]

_EPILOG = """\b
Exit codes:
  0    done
  1    the answer is no: nothing found, a check failed, or a part of it failed
  2    wrong usage, or wrong settings
  3    Redis or the broker cannot be reached, or refuses
  130  interrupted; what was begun can be gone on with

bus COMMAND --help has examples.
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
        except KeyboardInterrupt:  # click would say 1, which means no
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

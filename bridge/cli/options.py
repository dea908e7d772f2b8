"""Types of options, options that several commands share, and what they mean."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import click

from bridge.errors import BridgeError, did_you_mean
from bridge.events import compile_pattern
from bridge.handlers import Handler, registry
from bridge.storage import EntryFilter

F = TypeVar("F", bound=Callable[..., Any])

_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class When(NamedTuple):
    """A moment, and how it was written: ``2h`` is another moment each time."""

    text: str
    ms: int


class _Moment(click.ParamType[When]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> When:
        try:
            if ago := _AGO.fullmatch(value):
                moment_s = time.time() - float(ago[1]) * _UNIT_S[ago[2]]
            else:
                moment = datetime.fromisoformat(value)
                moment_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            moment_s = 0
        if moment_s < 1:
            text = "is no time: write how long ago (90s, 30m, 2h, 7d) or 2026-11-24T10:00, UTC unless it has an offset"
            self.fail(f"{value!r} {text}", param, ctx)
        return When(value, int(moment_s * 1000))


class _Glob(click.ParamType[str]):
    name = "glob"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            compile_pattern(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


MOMENT = _Moment()
GLOB = _Glob()


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return the options of a command as one decorator, in the order of its help."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
force_option = click.option("--force", is_flag=True, help="Do not ask.")
all_option = click.option("--all", "everything", is_flag=True, help="No filter: all there is.")
event_filters = options(
    click.option("--since", type=MOMENT, help="Not before: 90s, 30m, 2h, 7d ago, or 2026-11-24T10:00 (UTC)."),
    click.option("--until", type=MOMENT, help="Before; written like --since."),
    click.option("--type", type=GLOB, help="Event type, or a glob over it, e.g. 'dream.*'."),
    click.option("--id", multiple=True, help="Id of an event; may be repeated."),
    click.option("--handler", help="Name of a handler task, e.g. tasks.dreams.analyse."),
)


def selection_of(asked: Mapping[str, Any]) -> EntryFilter:
    """Return the selection that the filters among the options of a command ask for."""
    return EntryFilter(
        since_ms=asked["since"] and asked["since"].ms,
        until_ms=asked["until"] and asked["until"].ms,
        reason=asked.get("reason"),
        event_type=asked["type"],
        handler=asked["handler"],
        ids=frozenset(asked["id"]),
    )


def as_asked(asked: Mapping[str, Any], everything: bool) -> dict[str, Any]:
    """Return the filters among the options of a command, as they were written.

    Raises:
        click.UsageError: There is none, and not --all either.
    """
    given = {key: value for key, value in asked.items() if value}
    if bool(given) == everything:
        raise click.UsageError(
            "--all goes without filters" if everything else "say which: with filters such as --since or --id, or --all"
        )
    return {key: value.text if isinstance(value, When) else value for key, value in given.items()}


def handler_named(name: str) -> Handler:
    """Return the handler of that task name.

    Raises:
        BridgeError: There is none; the text proposes one.
    """
    handler = registry.get(name)
    if handler is None:
        known = ", ".join(sorted(registry.names)) or "none"
        raise BridgeError(f"there is no handler {name}; {did_you_mean(name, registry.names) or f'there are {known}'}")
    return handler

"""Types of options, and options that several commands share."""

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
    """A time, and how it was written: ``2h`` means another time at each call."""

    text: str
    ms: int


# Types of options are functions, because click.ParamType is generic only since click 8.4.


def moment(text: str) -> When:
    """Convert the text of an option to a time.

    Raises:
        click.BadParameter: It is not a time.
    """
    try:
        if ago := _AGO.fullmatch(text):
            moment_s = time.time() - float(ago[1]) * _UNIT_S[ago[2]]
        else:
            at = datetime.fromisoformat(text)
            moment_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        moment_s = 0
    if moment_s < 1:
        hint = "is not a time; write 90s, 30m, 2h or 7d (ago), or 2026-11-24T10:00, in UTC or with an offset"
        raise click.BadParameter(f"{text!r} {hint}")
    return When(text, int(moment_s * 1000))


def duration(text: str) -> int:
    """Convert the text of an argument to seconds.

    Raises:
        click.BadParameter: It is not a duration of a second or more.
    """
    match = _AGO.fullmatch(text)
    seconds = int(float(match[1]) * _UNIT_S[match[2]]) if match else 0
    if seconds < 1:
        raise click.BadParameter(f"{text!r} is not a duration; write 90s, 30m, 36h or 7d")
    return seconds


def glob(text: str) -> str:
    """Return the text of an option, which is a glob.

    Raises:
        click.BadParameter: It is not a glob.
    """
    try:
        compile_pattern(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return the options of a command as one decorator, in the order of its help."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
all_option = click.option("--all", "everything", is_flag=True, help="Select everything, without filters.")
event_filters = options(
    click.option(
        "--since",
        type=moment,
        metavar="TIME",
        help="Start time: 90s, 30m, 2h or 7d (ago), or 2026-11-24T10:00 (UTC).",
    ),
    click.option("--until", type=moment, metavar="TIME", help="End time (exclusive), in the same format as --since."),
    click.option("--type", type=glob, help="Event type or glob, e.g. 'dream.*'."),
    click.option("--id", multiple=True, help="Event id, or its beginning; can be repeated."),
    click.option("--handler", help="Task name of a handler, e.g. tasks.dreams.analyse."),
)


def selection_of(given: Mapping[str, Any]) -> EntryFilter:
    """Return the filters among the options of a command as an :class:`EntryFilter`."""
    return EntryFilter(
        since_ms=given["since"] and given["since"].ms,
        until_ms=given["until"] and given["until"].ms,
        reason=given.get("reason"),
        event_type=given["type"],
        handler=given["handler"],
        ids=frozenset(given["id"]),
    )


def filters_as_given(given: Mapping[str, Any], everything: bool) -> dict[str, Any]:
    """Return the filters among the options of a command as the user wrote them.

    Raises:
        click.UsageError: There is neither a filter nor --all, or both.
    """
    filters = {key: value for key, value in given.items() if value}
    if bool(filters) == everything:
        raise click.UsageError(
            "--all cannot be combined with filters" if everything else "give filters such as --since or --id, or --all"
        )
    return {key: value.text if isinstance(value, When) else value for key, value in filters.items()}


def handler_named(name: str) -> Handler:
    """Return the handler with this task name.

    Raises:
        BridgeError: No such handler exists; the text proposes another name.
    """
    handler = registry.get(name)
    if handler is None:
        known = ", ".join(sorted(registry.names)) or "none"
        raise BridgeError(f"there is no handler {name}; {did_you_mean(name, registry.names) or f'there are {known}'}")
    return handler

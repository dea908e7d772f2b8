"""What the tests of ``bus check`` share."""

from __future__ import annotations

import re
from importlib import import_module

from click.testing import Result

#: The checks in their order.
CHECKS = [
    "bus at",
    "permissions of the bus user",
    "clock",
    "subscribers of group tests",
    "broker",
    "durability, memory and Celery's settings",
    "settings of all groups",
    "ids of the journal",
    "prefixes of other buses on this Redis",
    "accepted types",
    "handlers and their workers",
]
#: The module of the command.
COMMAND = import_module("bridge.cli.commands.check")


def wrong(result: Result) -> list[tuple[str, str]]:
    """Return the problems as pairs of subject and reason, and assert that each has advice."""
    lines = result.stdout.splitlines()
    failed = [number for number, line in enumerate(lines) if line.startswith("FAIL  ")]
    assert all(re.match(r"      -> \S", lines[number + 1]) for number in failed)
    assert all(line.startswith(("ok    ", "FAIL  ", "      -> ")) for line in lines)
    parts = [lines[number].removeprefix("FAIL  ").partition(": ") for number in failed]
    return [(about, problem) for about, _, problem in parts]


def passed(result: Result) -> list[str]:
    return [line[6:] for line in result.stdout.splitlines() if line.startswith("ok    ")]

"""What the tests of ``bus check`` share."""

from __future__ import annotations

import re

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
    "handlers",
    "workers and queues",
]
NEED_WORKERS = ("subscribers of group tests", "workers and queues")
#: The checks that need no worker.
BEFORE_START = [name for name in CHECKS if name not in NEED_WORKERS]
_LABELS = ("FAIL  ", "warn  ")


def wrong(result: Result) -> list[tuple[str, str]]:
    """Return the problems as pairs of subject and reason, and assert that each has advice."""
    return [(about, problem) for _, about, problem in levelled(result)]


def levelled(result: Result) -> list[tuple[str, str, str]]:
    """Return the problems as :func:`wrong` does, each with its level in front."""
    lines = result.stdout.splitlines()
    found = [number for number, line in enumerate(lines) if line.startswith(_LABELS)]
    assert all(re.match(r"      -> \S", lines[number + 1]) for number in found)
    assert all(line.startswith(("ok    ", *_LABELS, "      -> ", "         ")) for line in lines)
    parts = [(lines[number][:4], *lines[number][6:].partition(": ")) for number in found]
    return [(level, about, problem) for level, about, _, problem in parts]


def passed(result: Result) -> list[str]:
    return [line[6:] for line in result.stdout.splitlines() if line.startswith("ok    ")]

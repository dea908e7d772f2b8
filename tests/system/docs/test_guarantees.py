"""The table of faults in ``docs/explanation/guarantees.md`` contains tests that exist."""

from __future__ import annotations

import re

from tests.support import ROOT, sources

ROWS = re.findall(
    r"^\| (\d+) \|.*\| (.+) \|$", (ROOT / "docs" / "explanation" / "guarantees.md").read_text(), re.MULTILINE
)


def test_every_fault_is_tested() -> None:
    """No row is missing, and each contains the name of a test function that exists once."""
    assert len(ROWS) >= 46
    assert [int(number) for number, _ in ROWS] == list(range(1, len(ROWS) + 1))
    count = sources.names_of_tests()
    wrong = []
    for number, tests in ROWS:
        named = re.findall(r"`(test_\w+)`", tests)
        if not named:
            wrong.append(f"row {number} names no test")
        wrong += [f"row {number}: {count[name]} tests are named {name}" for name in named if count[name] != 1]
    assert wrong == []

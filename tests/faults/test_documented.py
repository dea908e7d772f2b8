"""The table of faults in ``docs/guarantees.md`` names tests that exist."""

from __future__ import annotations

import ast
import re

from tests.conftest import ROOT

ROWS = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", (ROOT / "docs" / "guarantees.md").read_text(), re.MULTILINE)


def test_every_fault_is_tested() -> None:
    """All rows are there, each with a test, and every test is one that pytest would find."""
    assert len(ROWS) >= 46
    assert [int(number) for number, _ in ROWS] == list(range(1, len(ROWS) + 1))
    for number, tests in ROWS:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", tests)
        assert named, f"row {number} names no test"
        for file, test in named:
            functions = [
                node.name
                for node in ast.parse((ROOT / "tests" / file).read_text()).body
                if isinstance(node, ast.FunctionDef)
            ]
            assert test in (*functions, ""), f"row {number}: there is no {test} in {file}"

"""The versions of the dependencies: those that pyproject.toml allows, and those that the tests run with."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"].values()
REQUIREMENTS = [Requirement(text) for extra in (PROJECT["dependencies"], *EXTRAS) for text in extra]
OTHERS = [requirement for requirement in REQUIREMENTS if requirement.name != PROJECT["name"]]


def pins(text: str) -> dict[str, Version]:
    """Return the version by name in lines such as ``redis==8.1.0``."""
    lines = (line.partition(";")[0].strip() for line in text.splitlines() if "==" in line)
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


@pytest.mark.parametrize("requirement", OTHERS, ids=lambda requirement: requirement.name)
def test_the_pinned_version_is_allowed(requirement: Requirement) -> None:
    """constraints.txt pins every dependency, to a version that pyproject.toml allows."""
    pinned = {name.lower().replace("_", "-"): one for name, one in pins((ROOT / "constraints.txt").read_text()).items()}
    assert pinned[requirement.name] in requirement.specifier


def test_the_lowest_versions_are_the_bounds() -> None:
    """``make lowest`` installs every dependency of users in the lowest version that pyproject.toml allows."""
    command = [sys.executable, ROOT / "scripts/versions.py", "lowest"]
    lowest = pins(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (bound,) = (Version(one.version) for one in requirement.specifier if one.operator == ">=")
        assert lowest[requirement.name] == bound


@pytest.mark.parametrize(
    ("row", "name"), [("Celery", "celery"), ("kombu", "kombu"), ("redis-py", "redis"), ("Flower", "flower")]
)
def test_the_support_policy_states_the_bounds(row: str, name: str) -> None:
    """docs/support.md names the lowest version that pyproject.toml allows."""
    (requirement,) = (one for one in OTHERS if one.name == name)
    (bound,) = (one.version for one in requirement.specifier if one.operator == ">=")
    assert f"\n| {row} | {bound} " in (ROOT / "docs/support.md").read_text()


#: A distribution with extras, as after ``pip install``, and what the code reads from the metadata of a distribution.
_INSTALLED = re.compile(r"pip install ['\"]?([a-z-]*bridge[a-z-]*)\[(\w+)]")
_METADATA = re.compile(r"\b(?:version|distribution|metadata)\(\"([a-z-]*bridge[a-z-]*)\"\)")


def test_texts_and_code_use_the_name_of_the_distribution() -> None:
    """Errors, docs and look-ups of metadata name the distribution and extras that pyproject.toml declares."""
    texts = [*(ROOT / "bridge").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "tests/support/requirements.py"]
    named = [found for path in texts for found in _INSTALLED.findall(path.read_text())]
    assert set(named) <= {(PROJECT["name"], extra) for extra in PROJECT["optional-dependencies"]}
    assert {extra for _, extra in named} >= {"flower", "server"}
    read = [name for path in texts for name in _METADATA.findall(path.read_text())]
    assert set(read) == {PROJECT["name"]}

"""What the release workflow checks, and what belongs together in the files of the repository."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest
import yaml

from scripts.release import notes, problems
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCE = "https://github.com/someone/something"
CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-12-01

### Added

- This.

## [1.1.0]

[1.2.0]: https://example.com
"""


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "repository", "wrong"),
    [
        ("v1.2.0", "1.2.0", CHANGELOG, SOURCE, []),
        ("v1.2.1", "1.2.0", CHANGELOG, SOURCE, ["the tag is v1.2.1"]),
        ("v1.1.0", "1.1.0", CHANGELOG, SOURCE, ["has no section '## [1.1.0] - YYYY-MM-DD'"]),
        ("v1.2.0", "1.2.0", CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n### Fixed\n"), SOURCE, ["Unreleased"]),
        ("v1.2.0", "1.2.0", CHANGELOG, "https://github.com/fork/something", [f"pyproject.toml has {SOURCE}"]),
    ],
    ids=["fine", "other tag", "no date", "unreleased lines", "other repository"],
)
def test_a_release_with_a_contradiction_is_refused(
    tag: str, version: str, changelog: str, repository: str, wrong: list[str]
) -> None:
    """Tag, version, changelog and repository have to agree; each contradiction is named."""
    found = list(problems({"version": version}, {"Source": SOURCE}, changelog, tag, repository))
    assert len(found) == len(wrong)
    assert all(part in text for part, text in zip(wrong, found, strict=True))


def test_notes_are_the_section_of_the_version() -> None:
    """The notes of a release are its section of the changelog, without heading and links."""
    assert notes(CHANGELOG, "1.2.0") == "### Added\n\n- This."


def test_the_address_of_the_repository_is_the_same_everywhere() -> None:
    """Files that link to the repository have the address that pyproject.toml states as Source."""
    name = PROJECT["urls"]["Source"].removeprefix("https://github.com/")
    owner = name.partition("/")[0]
    command = ["git", "ls-files", "*.md", "*.yml", "*.toml"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    address = re.compile(
        rf"(?:github\.com|githubusercontent\.com)/([\w.-]*{PROJECT['name']}[\w.-]*/[\w.-]+)|([\w-]+)\.github\.io"
    )
    for file in tracked.stdout.split():
        for repository, site in address.findall((ROOT / file).read_text()):
            assert (repository or name, site or owner) == (name, owner), file


def test_hooks_and_make_run_the_same_versions() -> None:
    """The hooks before a commit have the versions of ruff and codespell that ``make lint`` has."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {hook["id"]: repo.get("rev", "") for repo in hooks for hook in repo["hooks"]}
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line.count("==") == 1
    )
    assert (revisions["ruff-check"], revisions["codespell"]) == (f"v{pins['ruff']}", f"v{pins['codespell']}")

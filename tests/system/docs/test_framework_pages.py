"""The pages about frameworks show the projects that tests/integration/frameworks runs."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT
from tests.support.walkthrough import blocks_of

PROJECTS = ROOT / "tests" / "integration" / "frameworks"
#: Comments for the linters of this repository, which readers do not need.
_FOR_LINTERS = re.compile(r"  # (?:noqa: \w+|type: ignore\[[\w-]+\])")


@pytest.mark.parametrize("framework", ["django", "flask", "fastapi"])
def test_pages_show_the_projects_that_run(framework: str) -> None:
    """Each block that names a file is that file or a part of it, and each project has its handlers on the page."""
    named = []
    for language, text in blocks_of((ROOT / "docs" / "guides" / f"{framework}.md").read_text()):
        if language == "python" and text.startswith("# "):
            name, _, part = text.removeprefix("# ").partition("\n")
            source = _FOR_LINTERS.sub("", (PROJECTS / f"{framework}_project" / name).read_text())
            assert f"\n{part}" in f"\n{source}", name
            named.append(name)
    assert len(named) >= 3
    assert any("@on_event" in (PROJECTS / f"{framework}_project" / name).read_text() for name in named)

"""examples/: the results of pages of the documentation, which other tests follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.walkthrough import Walkthrough

TUTORIAL = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "tutorial").glob("*.md"))
#: The pages of each example, and files that are on none of them.
EXAMPLES = {
    "quickstart": (["docs/quickstart.md"], set()),
    "shop": (TUTORIAL, set()),
    "publishers": (["docs/guides/any-language.md"], {"package.json"}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_the_result_of_its_pages(name: str, tmp_path: Path) -> None:
    """A reader who follows the pages has the files of the example."""
    pages, others = EXAMPLES[name]
    reader = Walkthrough(tmp_path, {})
    for page in pages:
        reader.save_files((ROOT / page).read_text())
    folder = ROOT / "examples" / name
    kept = {path.name for path in folder.iterdir() if path.is_file()}
    assert kept == {path.name for path in tmp_path.iterdir()} | others
    for path in tmp_path.iterdir():
        assert (folder / path.name).read_text() == path.read_text(), path.name

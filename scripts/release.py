"""What a release needs: agreement of its parts, and its notes.

    python scripts/release.py check v0.1.0 https://github.com/OWNER/NAME
    python scripts/release.py notes v0.1.0

``check`` prints what contradicts the tag or the address of the repository, with exit status 1; ``notes`` prints the
section of CHANGELOG.md.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def notes(changelog: str, version: str) -> str:
    """Return the section of *version* in a changelog, without its heading; empty without a section with a date."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |^\[|\Z)"
    found = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def problems(project: dict[str, str], urls: dict[str, str], changelog: str, tag: str, repository: str) -> Iterator[str]:
    """Yield what contradicts the release of *tag* from *repository*."""
    if tag != f"v{project['version']}":
        yield f"the tag is {tag}, but pyproject.toml has version {project['version']}: change one of them"
    if not notes(changelog, project["version"]):
        yield f"CHANGELOG.md has no section '## [{project['version']}] - YYYY-MM-DD': date the one that is released"
    if re.search(r"^## \[Unreleased\]\n+### ", changelog, re.MULTILINE):
        yield "CHANGELOG.md has lines under Unreleased: move them to the section of this version"
    if urls["Source"] != repository:
        yield f"the repository is {repository}, pyproject.toml has {urls['Source']}: replace it everywhere"


def main(arguments: list[str]) -> int:
    """Run ``check`` or ``notes``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    match arguments:
        case ["check", tag, repository]:
            found = list(problems(project, project["urls"], changelog, tag, repository))
            print("\n".join(found) or f"{tag} can be released")
            return 1 if found else 0
        case ["notes", tag]:
            print(notes(changelog, tag.removeprefix("v")))
            return 0
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

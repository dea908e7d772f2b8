"""Print constraints for pip: the lowest or the newest versions that pyproject.toml allows.

    python scripts/versions.py lowest
    python scripts/versions.py newest

The tools of the tests have the versions of constraints.txt in both cases, because users do not install them. Packages
that are in neither list are left to pip.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Name, extras and lowest version of a requirement.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?>=([^,;]+)")


def bounds(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield name and lowest version of each of *requirements*, except of extras of the bridge.

    Raises:
        ValueError: One has no lowest version.
    """
    for requirement in requirements:
        if requirement.startswith("celery-event-bridge["):
            continue
        found = _REQUIREMENT.match(requirement)
        if found is None:
            raise ValueError(f"{requirement}: write the lowest version that it works with, as in name>=1.2,<2")
        yield found[1], found[2].strip()


def constraints(which: str) -> Iterator[str]:
    """Yield one line for each dependency that users install, if *which* is lowest, and for each tool of the tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    if which == "lowest":
        for name, version in bounds([*project["dependencies"], *extras["flower"], *extras["server"]]):
            yield f"{name}=={version}"
    tools = {name for name, _ in bounds(extras["test"])}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    yield from (pin for pin in pins if pin.partition("==")[0].lower() in tools)


if __name__ == "__main__":
    if sys.argv[1:] not in (["lowest"], ["newest"]):
        sys.exit(__doc__)
    sys.stdout.writelines(f"{line}\n" for line in constraints(sys.argv[1]))

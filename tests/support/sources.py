"""The source files of the tests."""

from __future__ import annotations

import re
from collections import Counter

from tests.support import ROOT


def names_of_tests() -> Counter[str]:
    """Count the test functions by name, in all of ``tests/``."""
    texts = (path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    return Counter(name for text in texts for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))

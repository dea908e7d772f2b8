"""Code that tests import by name; it contains no fixtures."""

from __future__ import annotations

from pathlib import Path

#: The root folder of the project.
ROOT = Path(__file__).parent.parent.parent

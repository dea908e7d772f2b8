"""What tests import by name; no fixtures."""

from __future__ import annotations

from pathlib import Path

#: The folder of the project.
ROOT = Path(__file__).parent.parent.parent

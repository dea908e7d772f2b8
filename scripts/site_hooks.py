"""A hook of MkDocs: docstrings may refer to other names as Sphinx does, ``:meth:`load```; the site shows plain code."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):(<code>)~?")


def on_page_content(html: str, **_: Any) -> str:
    """Return the page without the names of roles."""
    return _ROLE.sub(r"\1", html)

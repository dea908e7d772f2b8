"""The Lua scripts, and the function that loads them.

A script starts with its keys and arguments by name. Where an argument or a key may be left out, its head says how:
an optional key is a position among the keys, 0 when it is left out, and an optional text is empty.

``-- include: NAME`` stands for the text of ``include/NAME.lua``, a function that several scripts use.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from redis import Redis
from redis.commands.core import Script

_INCLUDE = re.compile(r"^-- include: (\w+)\n", re.MULTILINE)


@cache
def script_text(name: str) -> str:
    """Return the text of ``lua/{name}.lua`` as Redis gets it, with what it includes."""
    return _INCLUDE.sub(lambda include: _read(f"include/{include[1]}"), _read(name))


def script(client: Redis, name: str) -> Script:
    """Return ``lua/{name}.lua`` ready to be called; after SCRIPT FLUSH it loads itself again."""
    return client.register_script(script_text(name))


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.lua").read_text("utf-8")

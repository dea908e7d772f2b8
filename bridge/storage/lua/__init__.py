"""The Lua scripts, and their loader."""

from __future__ import annotations

from functools import cache
from importlib import resources

from redis import Redis
from redis.commands.core import Script


@cache
def _script_text(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.lua").read_text("utf-8")


def script(client: Redis, name: str) -> Script:
    """Return ``lua/{name}.lua`` ready to call; after SCRIPT FLUSH it loads itself again."""
    return client.register_script(_script_text(name))

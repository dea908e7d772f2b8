"""Checks whether a Redis user has the permissions of a role, without running the commands.

Within a script, Redis reports whether the user has permission for a command. So only the permission to run scripts is
tested by using it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from redis import Redis
from redis.exceptions import NoPermissionError

from bridge.config import BridgeSettings
from bridge.operations.acl.bus import Role, bus_grants
from bridge.operations.acl.rules import Grant
from bridge.storage import script

#: Arguments of commands whose key is not the first argument.
_WORDS = {
    "COMMAND": (),  # its argument is the name of another command
    "EVALSHA": ("0" * 40, "1", "{key}"),
    "XREADGROUP": ("GROUP", "group", "consumer", "STREAMS", "{key}", ">"),
}
#: How many arguments follow the name of a command; their values do not matter, except for keys.
_ARGUMENTS = 4


def missing_permissions(client: Redis, settings: BridgeSettings, role: Role = "worker") -> list[str]:
    """Return the permissions that the user lacks on the bus, for example ``XADD {prefix}journal``.

    Raises:
        RedisError: Redis does not answer.
    """
    return missing_grants(client, bus_grants(role, settings))


def missing_grants(client: Redis, grants: Iterable[Grant]) -> list[str]:
    """Return the permissions of *grants* that the user lacks; empty before Redis 7.0, which cannot report them.

    Raises:
        RedisError: Redis does not answer.
    """
    probes = [probe for grant in grants for probe in grant.probes()]
    args: list[Any] = []
    for command, name in probes:
        words = _words(command, name)
        args += (len(words), *words)
    try:
        positions = script(client, "check_permissions")(args=args)
    except NoPermissionError as error:
        if not {"'evalsha'", "'script|load'"} & set(str(error).split()):
            raise  # the user cannot even connect
        return [f"run the script that checks the other permissions (running subscribers load it): {error}"]
    return [" ".join(probes[at - 1]).strip() for at in cast("list[int]", positions or ())]


def user_of(client: Redis) -> str:
    """Return the name of the user as which a client logs in."""
    return str(client.connection_pool.connection_kwargs.get("username") or "default")


def _words(command: str, name: str) -> list[str]:
    if (words := _WORDS.get(command)) is not None:
        return [command, *(name if word == "{key}" else word for word in words)]
    return [*command.split(" "), *([name or "0"] * _ARGUMENTS)]

"""Whether a Redis user may do what its role has to do: each right in acl.py is asked for, and nothing is carried out.

A script can ask Redis whether its user may give a command. So only one right has to be tried: that to run scripts.
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

#: Where the key of a command is not its first argument.
_WORDS = {
    "COMMAND": (),  # the name of another one, with a word behind it
    "EVALSHA": ("0" * 40, "1", "{key}"),
    "XREADGROUP": ("GROUP", "group", "consumer", "STREAMS", "{key}", ">"),
}
#: How many words follow the name of a command; what they say does not matter, unless they are keys.
_ARGUMENTS = 4


def missing_permissions(client: Redis, settings: BridgeSettings, role: Role = "worker") -> list[str]:
    """Return what the user is not allowed on the bus, as ``XADD {prefix}journal``.

    Raises:
        RedisError: Redis does not answer.
    """
    return missing_grants(client, bus_grants(role, settings))


def missing_grants(client: Redis, grants: Iterable[Grant]) -> list[str]:
    """Return what of *grants* the user does not have; where Redis does not tell, as before 7.0, that is nothing.

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
            raise  # it cannot even connect
        return [f"run the script that asks for the other rights: {error}"]
    return [" ".join(probes[at - 1]).strip() for at in cast("list[int]", positions or ())]


def user_of(client: Redis) -> str:
    """Return the name of the user that a client logs in as."""
    return str(client.connection_pool.connection_kwargs.get("username") or "default")


def _words(command: str, name: str) -> list[str]:
    if (words := _WORDS.get(command)) is not None:
        return [command, *(name if word == "{key}" else word for word in words)]
    return [*command.split(" "), *([name or "0"] * _ARGUMENTS)]

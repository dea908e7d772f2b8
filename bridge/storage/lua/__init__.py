"""The Lua scripts, and the function that loads them.

A script starts with its keys and arguments by name. Where an argument or a key may be left out, its head says how:
an optional key is a position among the keys, 0 when it is left out, and an optional text is empty.

A user who can load scripts can load one that never ends, which would block the server. So publishers only run scripts:
subscribers load those of :data:`_PROVIDED` for them.

``-- include: NAME`` stands for the text of ``include/NAME.lua``, a function that several scripts use.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import Any, TypeVar

from redis import Redis
from redis.commands.core import Script
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

T = TypeVar("T")

#: Scripts that users without the permission to load scripts run.
_PROVIDED = ("publish", "check_permissions")
#: How long such a user waits until a subscriber has loaded a script again, which each does every
#: ``HEARTBEAT_INTERVAL_S``; and how often it tries.
_WAIT_S, _TICK_S = 3.0, 0.1
_INCLUDE = re.compile(r"^-- include: (\w+)\n", re.MULTILINE)


@cache
def script_text(name: str) -> str:
    """Return the text of ``lua/{name}.lua`` as Redis gets it, with what it includes."""
    return _INCLUDE.sub(lambda include: _read(f"include/{include[1]}"), _read(name))


def script(client: Redis, name: str) -> Script:
    """Return ``lua/{name}.lua`` ready to be called; after SCRIPT FLUSH it loads itself again."""
    return client.register_script(script_text(name))


def provide_scripts(client: Redis) -> None:
    """Load the scripts of users who cannot load any. Safe to repeat, and cheap if they are loaded.

    Raises:
        RedisError: Redis does not answer.
    """
    for name in _PROVIDED:
        client.script_load(script_text(name))


class ProvidedScript:
    """A script whose user may be unable to load it. It is called in one round trip, and in pipelines.

    Arguments:
        client: Loads it if it can.
        name: Name of one of the provided scripts.
    """

    def __init__(self, client: Redis, name: str) -> None:
        self._client = client
        self._name = name
        self._text = script_text(name)
        self._sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def call(self, client: Redis, keys: list[Any], args: list[Any]) -> Any:
        """Call the script, or queue the call if *client* is a pipeline; within :meth:`loaded`."""
        return client.evalsha(self._sha, len(keys), *keys, *args)

    def loaded(self, do: Callable[[], T]) -> T:
        """Return the result of *do*, which calls the script and is safe to repeat; if need be, load the script first.

        Raises:
            ResponseError: This user cannot load it, and no subscriber has loaded it within 3 s.
        """
        try:
            return do()
        except NoScriptError:
            may_load = self._load()
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                return do()
            except NoScriptError as error:
                if may_load:
                    raise
                if time.monotonic() > until:
                    text = f"script {self._name} is not loaded, and this user is not allowed to load it"
                    raise ResponseError(text) from error
                time.sleep(_TICK_S)

    def _load(self) -> bool:
        try:
            self._client.script_load(self._text)
        except NoPermissionError:
            return False
        return True


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.lua").read_text("utf-8")

"""A recorder of all commands that programs send to a Redis server, including those in scripts, from MONITOR."""

from __future__ import annotations

import re
import threading
from typing import Any, Self

from redis import Redis

_LINE = re.compile(rb'\+?\d+\.\d+ \[\d+ ([^\]]*)\] (".*)$', re.S)
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.S)
_ESCAPED = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.S)
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
#: Sent to the server when the recording ends.
_END = b"the end of what is to be heard"

Words = tuple[bytes, ...]


class Recorder:
    """Records the commands of a server during a ``with`` block.

    Arguments:
        admin: A client with one connection. Its own commands and scripts are not recorded.
    """

    def __init__(self, admin: Redis) -> None:
        self._admin = admin
        self._own: bytes = admin.client_info()["addr"].encode()
        self._connection: Any = admin.connection_pool.make_connection()
        self._connection.socket_timeout = 50  # redis-py 8 has 5 s unless told otherwise
        self._thread = threading.Thread(target=self._listen, daemon=True)
        #: The commands as they were sent, in order.
        self.commands: list[Words] = []

    def __enter__(self) -> Self:
        self._connection.connect()
        self._connection.send_command("MONITOR")
        assert self._connection.read_response() == b"OK"
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._admin.echo(_END)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._connection.disconnect()

    def _listen(self) -> None:
        last = b""
        while True:
            place, words = parsed(self._connection.read_response())
            last = last if place == b"lua" else place
            if words[-1] == _END:
                return
            if last != self._own:
                self.commands.append(words)


def parsed(line: bytes) -> tuple[bytes, Words]:
    """Return the client that sent a command (``lua`` for a script) and the words of the command."""
    match = _LINE.match(line)
    assert match, line
    return match[1], tuple(_ESCAPED.sub(_unescaped, word) for word in _WORD.findall(match[2]))


def _unescaped(match: re.Match[bytes]) -> bytes:
    text = match[1]
    return bytes([int(text[1:], 16)]) if len(text) == 3 else _NAMED.get(text, text)


def name_of(words: Words) -> str:
    """Return a command's name as used by ACL SETUSER."""
    name = words[0].lower()
    two = name in (b"client", b"script", b"xinfo", b"xgroup", b"config", b"cluster", b"sentinel")
    return b"|".join([name, words[1].lower()] if two else [name]).decode()

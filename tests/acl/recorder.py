"""Every command that programs give a Redis, those inside their scripts included, as MONITOR tells them."""

from __future__ import annotations

import re
import threading
from typing import Any, Self

from redis import Redis

_LINE = re.compile(rb'\+?\d+\.\d+ \[\d+ ([^\]]*)\] (".*")$', re.S)
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.S)
_ESCAPED = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.S)
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}
#: Said to the server when all was said that is to be heard.
_END = "the end"


class Recorder:
    """Listens to a server for the time of a ``with`` block.

    Arguments:
        admin: Its own connection; what it says is left out.
    """

    def __init__(self, admin: Redis) -> None:
        self._admin = admin
        self._pool = admin.connection_pool
        self._connection: Any = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        #: As they were given, in their order.
        self.commands: list[tuple[bytes, ...]] = []

    def __enter__(self) -> Self:
        self._connection = self._pool.make_connection()
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
        own = None
        while True:
            line = self._connection.read_response(timeout=30)
            place, words = parsed(line)
            if words[0].upper() == b"ECHO" and words[1] == _END.encode():
                return
            if place != b"lua":
                own = words[0].upper() == b"ECHO" or self._is_admin(place)
            if not own:
                self.commands.append(words)

    def _is_admin(self, place: bytes) -> bool:
        return place in self.admins

    #: Addresses of those who prepare and look, not of those who are watched.
    admins: frozenset[bytes] = frozenset()


def parsed(line: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return who gave a command, ``lua`` for a script, and its words."""
    match = _LINE.match(line)
    assert match, line
    words = tuple(_ESCAPED.sub(_unescaped, word) for word in _WORD.findall(match[2]))
    return match[1], words


def _unescaped(match: re.Match[bytes]) -> bytes:
    text = match[1]
    return bytes([int(text[1:], 16)]) if len(text) == 3 else _NAMED.get(text, text)

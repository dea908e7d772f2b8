"""A proxy through which Redis refuses chosen requests with any error."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

from bridge.storage.lua import script_text
from tests.support.proxy import Proxy, _Pair

#: A command that no server knows, and the reply to it.
_UNKNOWN = b"INJECTED"
_REPLY = re.compile(rb"-ERR unknown command [^\r\n]*%b[^\r\n]*\r\n" % _UNKNOWN)

#: How a request begins: a command in capitals and further words.
Beginning = tuple[bytes, ...]


def runs(name: str) -> Beginning:
    """Return how a request begins that runs the Lua script *name*."""
    return (b"EVALSHA", hashlib.sha1(script_text(name).encode()).hexdigest().encode())


class _Command(NamedTuple):
    """A command as it was sent, and its words."""

    raw: bytes
    words: list[bytes]


class RefusingProxy(Proxy):
    """A proxy that can replace a command by one that the server does not know, and the error of that by another one.

    So the error takes its place among the replies, and it makes a transaction fail like a command that is refused when
    it is queued.

    Arguments:
        port: Port of the server on the loopback interface.
        error: The error, such as ``OOM command not allowed``.
    """

    def __init__(self, port: int, error: str) -> None:
        super().__init__(port)
        self._error = b"-%b\r\n" % error.encode()
        self._sites: Mapping[str, Beginning] = {}
        self._left: Counter[str] = Counter()
        #: Beginnings of requests whose rest has not come yet.
        self._partial: WeakKeyDictionary[_Pair, bytes] = WeakKeyDictionary()
        self._on_request = self._replaced
        self._on_reply = lambda data: _REPLY.sub(lambda _: self._error, data) if _UNKNOWN in data else data

    def refuse_requests(self, sites: Mapping[str, Beginning], times: Mapping[str, int]) -> None:
        """Refuse the next requests of each of the named *sites*, so many *times* more; ``done`` counts them."""
        self._sites = sites
        self._left += Counter(times)

    @property
    def not_refused(self) -> dict[str, int]:
        """How many requests of each site are still to be refused."""
        return dict(+self._left)

    def _replaced(self, pair: _Pair, data: bytes) -> bytes:
        commands, self._partial[pair] = _commands(self._partial.get(pair, b"") + data)
        return b"".join(self._forwarded(command) for command in commands)

    def _forwarded(self, command: _Command) -> bytes:
        words = (command.words[0].upper(), *command.words[1:])
        with self._lock:
            for name, beginning in self._sites.items():
                if self._left[name] > 0 and words[: len(beginning)] == beginning:
                    self._left[name] -= 1
                    self.done[name] += 1
                    return b"*1\r\n$%d\r\n%b\r\n" % (len(_UNKNOWN), _UNKNOWN)
        return command.raw


def _commands(data: bytes) -> tuple[list[_Command], bytes]:
    """Split requests into commands; return also the beginning of an incomplete one."""
    commands, begin = [], 0
    with suppress(ValueError, IndexError):  # the rest has not come yet
        while begin < len(data):
            at = data.index(b"\r\n", begin) + 2
            words = []
            for _ in range(int(data[begin + 1 : at - 2])):
                start = data.index(b"\r\n", at) + 2
                at = start + int(data[at + 1 : start - 2]) + 2
                words.append(data[start : at - 2])
            if at > len(data):
                break
            commands.append(_Command(data[begin:at], words))
            begin = at
    return commands, data[begin:]

"""Permissions as Redis ACL rules: commands, and the keys and channels on which they are allowed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from bridge.events import escape_glob

#: The first Redis with ACL selectors, and with permissions only to read or only to write a key.
MIN_VERSION = (7, 0)
#: The first Redis to which clients send their name and version (CLIENT SETINFO).
_SETINFO_VERSION = (7, 2)
#: Commands that redis-py sends when it connects and when it checks a connection.
CONNECTING = frozenset({"client|setname", "ping"})
#: Commands that read keys, and commands that write them. Others only check whether a key exists.
_READ = (
    "evalsha get mget getrange pttl incr incrby hget hmget hgetall hkeys hvals hrandfield hincrby smembers sismember "
    "xrange xrevrange xreadgroup xautoclaim xclaim xpending xinfo|stream xinfo|groups xinfo|consumers zrange zcount "
    "zrangebyscore brpop lindex rename"
)
_WRITE = (
    "evalsha set setex del unlink expire pexpire incr incrby hset hsetnx hdel hincrby lpush rpush brpop sadd srem "
    "lrem rename zadd zrem zremrangebyscore xadd xdel xack xautoclaim xclaim xtrim xgroup|create xgroup|delconsumer "
    "xgroup|destroy xsetid"
)
#: Characters that a rule cannot contain, because Redis interprets quotes, parentheses and white space.
_UNWRITABLE = re.compile(r"[\s\"'()\x00-\x1f]")


class Name(NamedTuple):
    """Names of keys or channels: a glob, and a sample that it matches."""

    pattern: str
    sample: str


def exact(name: str) -> Name:
    """Return the name of one key or channel."""
    return Name(_UNWRITABLE.sub("?", escape_glob(name)), name)


def prefix(start: str) -> Name:
    """Return all names that start with *start*."""
    return Name(exact(start).pattern + "*", f"{start}bridge-check")


def literal_pattern(pattern: str) -> Name:
    """Return a pattern to subscribe to: Redis compares it with the rule character by character."""
    return Name(pattern, pattern)


@dataclass(frozen=True)
class Grant:
    """Permission to run commands on keys or channels. Without either: commands that use none.

    Arguments:
        commands: Names as in ACL SETUSER, without the plus sign: ``xadd``, ``xinfo|groups``.
    """

    commands: frozenset[str]
    keys: tuple[Name, ...] = ()
    channels: tuple[Name, ...] = ()

    def rules(self) -> list[str]:
        """Return the rules for a user or, in parentheses, for a selector."""
        if self.commands.isdisjoint(_WRITE.split()):
            access = "%R~"  # also if nothing is read: Redis requires permission to read or to write
        elif self.commands.isdisjoint(_READ.split()):
            access = "%W~"
        else:
            access = "~"
        commands = [f"+{command}" for command in sorted(self.commands)]
        keys = [access + name.pattern for name in self.keys]
        return [*commands, *keys, *(f"&{name.pattern}" for name in self.channels)]

    def probes(self) -> Iterator[tuple[str, str]]:
        """Yield each command, as users write it, with a sample of each name, or empty if the command uses none."""
        for command in sorted(self.commands):
            for name in (*self.keys, *self.channels) or (Name("", ""),):
                yield command.replace("|", " ").upper(), name.sample


def granted(*needs: tuple[str, Iterable[Name]], channels: Iterable[tuple[str, Iterable[Name]]] = ()) -> list[Grant]:
    """Return grants for commands, separated by spaces; keys with the same commands share one grant."""
    return [
        *(Grant(commands, keys=names) for names, commands in _gathered(needs)),
        *(Grant(commands, channels=names) for names, commands in _gathered(channels)),
    ]


def _gathered(needs: Iterable[tuple[str, Iterable[Name]]]) -> Iterator[tuple[tuple[Name, ...], frozenset[str]]]:
    by_name: defaultdict[Name, set[str]] = defaultdict(set)
    for commands, names in needs:
        for name in names:
            by_name[name].update(commands.split())
    by_commands: defaultdict[frozenset[str], list[Name]] = defaultdict(list)
    for name, allowed in by_name.items():
        by_commands[frozenset(allowed)].append(name)
    yield from ((tuple(names), commands) for commands, names in by_commands.items())


def rules_of(grants: Iterable[Grant], version: tuple[int, ...]) -> list[str]:
    """Return the rules of one user, each a word or, for a selector, several in parentheses.

    They replace the permissions of the user and keep its passwords.

    Arguments:
        version: Version of the server.
    """
    keyless: set[str] = set()
    selectors: dict[str, None] = {}
    for grant in grants:
        if grant.keys or grant.channels:
            selectors[f"({' '.join(grant.rules())})"] = None
        else:
            keyless |= grant.commands
    if version >= _SETINFO_VERSION:
        keyless.add("client|setinfo")
    commands = Grant(frozenset(keyless)).rules()
    return ["on", "resetkeys", "resetchannels", "nocommands", "clearselectors", *commands, *selectors]


def version_of(client: Any) -> tuple[int, ...]:
    """Return the version of a server.

    Raises:
        RedisError: It does not answer, or refuses to report its version.
    """
    return tuple(map(int, re.findall(r"\d+", str(client.info("server")["redis_version"]))[:2]))

"""Rights on a Redis, as its ACL has them: commands, and the keys and channels that they are for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from bridge.events import escape_glob

#: The first Redis whose users have selectors, and rights to read or to write only.
MIN_VERSION = (7, 0)
#: The first Redis that clients tell with each connection what they are.
_SETINFO_VERSION = (7, 2)
#: What redis-py says with each connection, and to see whether there still is one.
CONNECTING = frozenset({"client|setname", "ping"})
#: Commands that tell what keys hold, and those that change it. Those in neither tell no more than that they are there.
_READ = (
    "evalsha get mget getrange pttl incr incrby hget hmget hgetall hincrby smembers sismember xrange xrevrange "
    "xreadgroup xautoclaim xpending xinfo|groups xinfo|consumers zrange zcount zrangebyscore brpop"
)
_WRITE = (
    "evalsha set setex del unlink expire pexpire incr incrby hset hsetnx hdel hincrby lpush rpush brpop sadd srem "
    "zadd zrem xadd xdel xack xautoclaim xtrim xgroup|create xgroup|delconsumer xgroup|destroy"
)
#: What no rule can hold, for Redis reads quotes, parentheses and white space in it.
_UNWRITABLE = re.compile(r"[\s\"'()\x00-\x1f]")


class Name(NamedTuple):
    """Keys or channels: a glob, and one that it matches."""

    pattern: str
    sample: str


def exact(name: str) -> Name:
    """Return the name of one key or channel."""
    return Name(_UNWRITABLE.sub("?", escape_glob(name)), name)


def prefix(start: str) -> Name:
    """Return the names that begin like this."""
    return Name(exact(start).pattern + "*", f"{start}bridge-check")


def literal_pattern(pattern: str) -> Name:
    """Return a pattern that is subscribed to: Redis compares those letter by letter."""
    return Name(pattern, pattern)


@dataclass(frozen=True)
class Grant:
    """Commands, and what they are for. Without keys and channels: commands that need none.

    Arguments:
        commands: As ACL SETUSER names them, without the plus: ``xadd``, ``xinfo|groups``.
    """

    commands: frozenset[str]
    keys: tuple[Name, ...] = ()
    channels: tuple[Name, ...] = ()

    def rules(self) -> list[str]:
        """Return the rules for a user or, in parentheses, for a selector."""
        if self.commands.isdisjoint(_WRITE.split()):
            access = "%R~"  # also where nothing is read: Redis takes no key without a permission to read or to write
        elif self.commands.isdisjoint(_READ.split()):
            access = "%W~"
        else:
            access = "~"
        commands = [f"+{command}" for command in sorted(self.commands)]
        keys = [access + name.pattern for name in self.keys]
        return [*commands, *keys, *(f"&{name.pattern}" for name in self.channels)]

    def probes(self) -> Iterator[tuple[str, str]]:
        """Yield each command with each name it is for, as Redis and people spell them; the name may be empty."""
        for command in sorted(self.commands):
            for name in (*self.keys, *self.channels) or (Name("", ""),):
                yield command.replace("|", " ").upper(), name.sample


def granted(*needs: tuple[str, Iterable[Name]], channels: Iterable[tuple[str, Iterable[Name]]] = ()) -> list[Grant]:
    """Return the grants for commands, separated by spaces, on keys; what goes for the same keys goes together."""
    return [
        *(Grant(commands, keys=names) for names, commands in _gathered(needs)),
        *(Grant(commands, channels=names) for names, commands in _gathered(channels)),
    ]


def _gathered(needs: Iterable[tuple[str, Iterable[Name]]]) -> Iterator[tuple[tuple[Name, ...], frozenset[str]]]:
    by_name: defaultdict[Name, set[str]] = defaultdict(set)
    for commands, names in needs:
        for name in names:
            by_name[name].update(commands.split())
    alike: defaultdict[frozenset[str], list[Name]] = defaultdict(list)
    for name, some in by_name.items():
        alike[frozenset(some)].append(name)
    yield from ((tuple(names), commands) for commands, names in alike.items())


def rules_of(grants: Iterable[Grant], version: tuple[int, ...]) -> list[str]:
    """Return the rules of one user, each a word or, for a selector, several in parentheses.

    They replace the rights that the user has, and leave the passwords alone.

    Arguments:
        version: Of the server.
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
    rights = Grant(frozenset(keyless)).rules()
    return ["on", "resetkeys", "resetchannels", "nocommands", "clearselectors", *rights, *selectors]


def version_of(client: Any) -> tuple[int, ...]:
    """Return the version of a server.

    Raises:
        RedisError: It does not answer, or does not tell.
    """
    return tuple(map(int, re.findall(r"\d+", str(client.info("server")["redis_version"]))[:2]))

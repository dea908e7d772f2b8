"""Whether the Redis user of the bus may do what the bridge does: each command is tried where it changes nothing.

Redis looks at rights before arguments. So a command with an argument that it refuses, or on a key that is not there,
tells whether it would be allowed; and so does one in a transaction that is given up. ``bus groups delete`` needs
UNLINK and XGROUP DESTROY besides; a subscriber does well without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from bridge.keys import Keys
from bridge.settings import BridgeSettings

#: Names a task, an event, a group and a consumer that there are not.
_NOBODY = "bridge-check"
#: Where a number or an id belongs.
_WRONG = "none"


def refused(client: Redis, settings: BridgeSettings) -> list[str]:
    """Return what the user is not allowed, as ``XADD {prefix}journal: <what Redis says>``.

    Raises:
        RedisError: Redis does not answer.
    """
    keys = Keys(settings.channel_prefix)
    connection: Any = client.connection_pool.get_connection()  # all on one, for the sake of the transaction
    try:
        found = list(_refusals(connection, _harmless(keys, settings.group), keys))
        # Only MULTI keeps the rest from being carried out.
        if not (alone := list(_refusals(connection, [("MULTI",)], keys))):
            found += _refusals(connection, _given_up(keys, settings.enable_pubsub), keys)
    finally:
        connection.disconnect()  # which gives up the transaction
        client.connection_pool.release(connection)
    if settings.enable_pubsub:
        found += _subscriptions(client, keys)
    return found + alone


def user_of(client: Redis) -> str:
    """Return the name of the user; ``default`` where Redis does not tell."""
    try:
        name: Any = client.acl_whoami()
    except RedisError:
        return "default"
    return name.decode() if isinstance(name, bytes) else str(name)


def _refusals(connection: Any, commands: Iterable[tuple[Any, ...]], keys: Keys) -> Iterator[str]:
    for command in commands:
        connection.send_command(*command)
        try:
            connection.read_response()
        except ResponseError as error:  # most are allowed, and refused for what we gave them
            if isinstance(error, NoPermissionError) or "NOPERM" in str(error):  # of EXEC it is part of an EXECABORT
                yield f"{_told(command, keys)}: {error}"


def _harmless(keys: Keys, group: str) -> Iterator[tuple[Any, ...]]:
    event, seen, lease, journal = keys.event(_NOBODY), keys.seen(_NOBODY), keys.lease(_NOBODY), keys.journal
    dead, inflight, fence = keys.dead(_NOBODY), keys.inflight(_NOBODY), keys.fence(_NOBODY)
    yield from (("TIME",), ("SCAN", 0, "COUNT", 1), ("EVALSHA", "0" * 40, 0))
    yield from (("SCRIPT", "LOAD", "return 1"), ("SCRIPT", "EXISTS", "0" * 40))
    yield from (("GET", event), ("GETRANGE", event, 0, 0), ("PTTL", event), ("SET", event, "", "PX", _WRONG))
    yield from (("GET", seen), ("MGET", seen), ("EXISTS", seen), ("SET", seen, "", "PX", _WRONG))
    yield from (
        ("XADD", journal, "NOMKSTREAM", "0-0", "f", "v"),
        ("XLEN", journal),
        ("XTRIM", journal, "MAXLEN", _WRONG),
    )
    yield from (("XRANGE", journal, "+", "-"), ("XREVRANGE", journal, "-", "+"))
    yield from (("XGROUP", "CREATE", journal, group, _WRONG), ("XGROUP", "DELCONSUMER", journal, group, _NOBODY))
    yield ("XREADGROUP", "GROUP", group, _NOBODY, "COUNT", _WRONG, "STREAMS", journal, ">")
    yield from (("XACK", journal, group, _WRONG), ("XAUTOCLAIM", journal, group, _NOBODY, _WRONG, "0"))
    yield from (("XINFO", "GROUPS", journal), ("XINFO", "CONSUMERS", journal, group), ("XPENDING", journal, group))
    yield from (("XADD", dead, "NOMKSTREAM", "0-0", "f", "v"), ("XRANGE", dead, "+", "-"), ("XDEL", dead, "0-0"))
    yield from (("HSET", lease, "f", "v", "f"), ("HGET", lease, "f"), ("HMGET", lease, "f"), ("HGETALL", lease))
    yield from (("HDEL", lease, "f"), ("HINCRBY", lease, "f", _WRONG), ("HEXISTS", lease, "f"))
    yield from (("PEXPIRE", lease, 1), ("DEL", lease), ("ZADD", inflight, _WRONG, "m"), ("ZREM", inflight, "m"))
    yield from (("ZCARD", inflight), ("ZCOUNT", inflight, 0, 0), ("ZRANGE", inflight, 0, 0))
    yield from (("ZRANGEBYSCORE", inflight, 0, 0), ("WATCH", fence), ("UNWATCH",), ("EXEC",))


def _given_up(keys: Keys, pubsub: bool) -> Iterator[tuple[Any, ...]]:
    yield from (("INCRBY", keys.fence(_NOBODY), 1), ("HSETNX", keys.replay(_NOBODY, _NOBODY), "f", "v"))
    if pubsub:
        yield from (("PUBLISH", keys.heartbeat, ""), ("PUBLISH", keys.channel(_NOBODY), ""))


def _subscriptions(client: Redis, keys: Keys) -> Iterator[str]:
    for command, name in (("psubscribe", keys.all_channels), ("subscribe", keys.heartbeat)):
        with closing(client.pubsub()) as pubsub:  # type: ignore[no-untyped-call]  # redis-py has no types here
            try:
                getattr(pubsub, command)(name)
                pubsub.get_message(timeout=1.0)
            except NoPermissionError as error:
                yield f"{command.upper()} {name}: {error}"


def _told(command: tuple[Any, ...], keys: Keys) -> str:
    two = command[0] in ("XGROUP", "XINFO", "SCRIPT")
    words = command[: 2 if two else 1]
    key = next((part for part in command[1:] if isinstance(part, str) and keys.prefix in part), "")
    return " ".join([*words, key]).strip()

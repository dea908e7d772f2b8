"""Whether the Redis user of the bus may do what the bridge does: each command is tried where it changes nothing.

Redis looks at rights before arguments. So a command with an argument that it refuses, or on a key that is not there,
tells whether it would be allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    found = []
    for command in _commands(Keys(settings.channel_prefix), settings.group):
        try:
            client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py has no types here
        except NoPermissionError as error:
            found.append(f"{_told(command)}: {error}")
        except ResponseError:
            pass  # it is allowed, and refused for what we gave it
    if settings.enable_pubsub:
        found += _subscriptions(client, Keys(settings.channel_prefix))
    return found


def user_of(client: Redis) -> str:
    """Return the name of the user; ``default`` where Redis does not tell."""
    try:
        name: Any = client.acl_whoami()
    except RedisError:
        return "default"
    return name.decode() if isinstance(name, bytes) else str(name)


def _commands(keys: Keys, group: str) -> Iterator[tuple[Any, ...]]:
    event, seen, lease, journal = keys.event(_NOBODY), keys.seen(_NOBODY), keys.lease(_NOBODY), keys.journal
    dead, inflight, fence = keys.dead(_NOBODY), keys.inflight(_NOBODY), keys.fence(_NOBODY)
    yield from (("TIME",), ("SCAN", 0, "COUNT", 1), ("SCRIPT", "LOAD", "return 1"), ("EVALSHA", "0" * 40, 0))
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
    yield from (("ZRANGEBYSCORE", inflight, 0, 0), ("INCR", fence), ("DEL", fence))
    yield from (("WATCH", fence), ("UNWATCH",), ("PUBLISH", keys.heartbeat, _NOBODY))


def _subscriptions(client: Redis, keys: Keys) -> Iterator[str]:
    for command, name in (("psubscribe", keys.all_channels), ("subscribe", keys.heartbeat)):
        with closing(client.pubsub()) as pubsub:  # type: ignore[no-untyped-call]  # redis-py has no types here
            try:
                getattr(pubsub, command)(name)
                pubsub.get_message(timeout=1.0)
            except NoPermissionError as error:
                yield f"{command.upper()} {name}: {error}"


def _told(command: tuple[Any, ...]) -> str:
    two = command[0] in ("XGROUP", "XINFO", "SCRIPT")
    words = command[: 2 if two else 1]
    key = next((part for part in command[1:] if isinstance(part, str) and ":" in part), "")
    return " ".join([*words, key]).strip()

"""The permissions of each kind of program on the bus. ``bus acl`` prints them as rules, and ``verify`` checks them.

A role consists of scripts and commands, and of the kinds of keys that they use. Redis checks permissions twice when a
script runs: EVALSHA requires full access to the keys that the script declares, and then each command inside it is
checked like any other. So a user gets EVALSHA on the keys of its scripts, and on each kind of keys only the commands
that use it. A user who can run scripts can also run other scripts, but those can do nothing more. One who can load them
can load one that never ends; after its first write only SHUTDOWN NOSAVE ends it. So publishers cannot.

The permissions that Celery needs on its broker and its result backend are in ``celery.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from bridge.config import BridgeSettings
from bridge.errors import SettingsError
from bridge.operations.acl.rules import CONNECTING, Grant, Name, exact, granted, literal_pattern, prefix
from bridge.operations.acl.scripts import SCRIPTS
from bridge.storage import Keys

Role = Literal["publisher", "subscriber", "worker", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)

#: Commands for the status of all groups. ``any_dead`` is the key of any group, ``dead`` that of the group in settings.
_STATUS = {
    "journal": "xinfo|consumers",
    "any_inflight": "zcard zcount",
    "any_dead": "xlen",
    "any_dead_size": "hmget",
    "any_starts": "hgetall",
    "any_subscribers": "hgetall",
    "any_queue_sample": "get",
}


class _Needs(NamedTuple):
    """The needs of a part of a role: names of scripts, commands by kind of key, commands without keys, channels."""

    scripts: tuple[str, ...] = ()
    keys: Mapping[str, str] = {}
    keyless: str = ""
    channels: Mapping[str, str] = {}


_BROADCASTING = _Needs(channels={"events": "publish"})
_PUBLISHING = (_Needs(("publish",)), _BROADCASTING)
_NO_BRIDGE = (_Needs(keys={"event": "set setex"}), _BROADCASTING)
_SUBSCRIBING = (
    _Needs(  # dispatch
        ("create_group", "acknowledge_sent", "write_dead_letter", "write_dead_letter, of a task"),
        {
            "journal": "xreadgroup xack xclaim xinfo|groups xrange",
            "inflight_tasks": "hset",
            "inflight": "zadd",
            "fencing_token": "watch get incrby",
            "handed_over": "hmget hset hdel hkeys",
        },
        "multi exec",
    ),
    _Needs(  # maintenance
        (
            "elect",
            "claim",
            "leave",
            "find_overdue",
            "postpone",
            "sweep_overdue",
            "write_dead_letter, giving up",
            "trim",
            "set_aside",
            "move_back",
        ),
        {"journal": "xinfo|consumers", "set_aside": "lindex"},
    ),
    _Needs(  # monitoring
        ("backlog", "report_presence"),
        {**_STATUS, "subscribers": "hgetall", "group_settings": "hgetall"},
        "time info",
    ),
    _Needs(  # queues
        ("elect, for the queues",),
        {
            "queue_sample": "get set",
            "inflight": "zrange",
            "inflight_tasks": "hrandfield hmget",
            "queue_watermarks": "hmget",
            "any_workers": "hgetall",
            "workers": "hdel",
            "group_settings": "hgetall",
            "subscribers": "hgetall",
        },
        "time",
    ),
)
_INTAKE = _Needs(
    ("append", "write_dead_letter"),
    {"event": "get getrange pttl strlen", "seen": "exists mget", "skipped": "mget set"},
    "scan script|exists",
    {"listened_to": "psubscribe", "heartbeat": "subscribe publish"},
)
_RUNNING = _Needs(
    ("start_run", "renew", "release", "end", "write_dead_letter", "write_dead_letter, of a task"),
    {"done": "exists set watch", "lease": "del", "inflight": "zrem", "inflight_tasks": "hdel"},
    "multi exec unwatch",
)
_LOOKING_UP = _Needs(keys={"event": "get", "seen": "mget", "journal": "xrange"})  # get_event()
_REPORTING_QUEUES = _Needs(("report_worker",), {"workers": "hdel hgetall"}, "time")
_OPERATING = (
    _Needs(  # status, check
        ("backlog",), {**_STATUS, "subscribers": "hgetall", "group_settings": "hgetall"}, "time info config|get"
    ),
    _Needs(  # get, trace, tail, and the pages of Flower
        ("headers",),
        {
            "event": "get getrange pttl",
            "seen": "mget",
            "journal": "xrange xrevrange xinfo|groups xpending",
            "consequences": "zrange zcard",
            "done": "get",
            "lease": "hget",
            "inflight_tasks": "hget",
            "replays": "zrange",
            "dead": "xrange xrevrange xlen",
            "dead_size": "hmget",
        },
        "scan",  # for the beginning of an id
        {"all_events": "psubscribe", "heartbeat": "subscribe publish"},
    ),
    _Needs(("drop", "replay"), {"replay": "hgetall hsetnx pexpire"}, "multi exec"),  # dead, replay
    _Needs(  # groups
        (),
        {"all_of_any_group": "exists unlink", "journal": "xgroup|destroy", "group_settings": "hset hdel"},
        "scan multi exec",
    ),
)
_NEEDS: Mapping[Role, tuple[_Needs, ...]] = {
    "publisher": _PUBLISHING,
    "subscriber": (*_SUBSCRIBING, _INTAKE),
    "worker": (_RUNNING, _LOOKING_UP, _REPORTING_QUEUES, *_PUBLISHING),
    "operator": _OPERATING,
}

#: Kinds of keys: one for each id; one for each group; one for each id of a group.
_BY_ID = ("event", "seen", "consequences", "done", "lease")
_OF_GROUP = (
    *("inflight", "inflight_tasks", "queue_watermarks", "fencing_token", "handed_over", "leader"),
    *("dead", "dead_size", "starts", "subscribers", "workers", "queue_leader", "queue_sample"),
)
_OF_GROUP_BY_ID = ("replay", "replays", "dead_letter_dedup", "skipped")


def bus_grants(
    role: Role, settings: BridgeSettings, *, no_bridge: bool = False, subscriber: bool = True
) -> list[Grant]:
    """Return the permissions that a role needs on the bus.

    Arguments:
        no_bridge: Whether the publisher does not use the bridge, and only writes event keys and broadcasts.
        subscriber: Whether the worker runs a subscriber.

    Raises:
        SettingsError: The prefix contains characters that an ACL rule cannot contain.
    """
    if set("()'\"") & set(settings.channel_prefix):
        raise SettingsError(
            "channel_prefix: its parentheses or quotes cannot be written in an ACL rule; choose another prefix"
        )
    needs = list(_NO_BRIDGE if no_bridge else _NEEDS[role])
    if role == "worker" and subscriber:
        needs += _NEEDS["subscriber"]
    needs = [fitting for one in needs for fitting in _fitting(one, settings)]
    names = _names(settings)
    scripts = {script for one in needs for script in one.scripts}
    declared = {kind for script in scripts for kind in SCRIPTS[script]}
    declared = {kind for kind in declared if f"any_{kind}" not in declared}
    keyless = CONNECTING.union(*(one.keyless.split() for one in needs))
    if scripts and role != "publisher":  # subscribers load the scripts of publishers, who could load one without an end
        keyless |= {"script|load"}
    if settings.address.options.get("db"):
        keyless |= {"select"}
    channels = ((commands, names[kind]) for one in needs for kind, commands in one.channels.items())
    found = [(commands, names[kind]) for kind, commands in _commands(needs, scripts)]
    grants = [Grant(keyless)]
    grants += granted(("evalsha", [name for kind, some in names.items() if kind in declared for name in some]))
    grants += granted(*(one for one in found if len(one[1]) == 1), channels=channels)
    for one in found:
        if len(one[1]) > 1:  # one command uses keys of several kinds, and Redis requires all of them in one selector
            grants += granted(one)
    return grants


def _fitting(one: _Needs, settings: BridgeSettings) -> Iterator[_Needs]:
    """Yield the needs that apply with these settings, and additional ones."""
    cluster = settings.address.kind == "cluster"
    if not settings.enable_pubsub:
        if one in (_INTAKE, _BROADCASTING):
            return
        one = one._replace(channels={})
    if "publish" in one.scripts:
        if not settings.enable_persistence:
            return
        # In a cluster the event key has another slot, so it is written before the script runs.
        yield _Needs((), {"event": "set del"}) if cluster else _Needs(("publish, with the event key",))
        if cluster or settings.wait_replicas:
            yield _Needs(("publish, again",), keyless="wait" if settings.wait_replicas else "")
    if "append" in one.scripts and settings.max_events_per_s_per_source is not None:
        yield _Needs(("append, limited",))
    yield one
    if cluster:
        yield _Needs(keyless="cluster|slots command asking")


def _commands(needs: Sequence[_Needs], scripts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield kinds of keys with their commands, without those that are already allowed on the keys of all groups."""
    by_kind: defaultdict[str, set[str]] = defaultdict(set)
    for some in [*(SCRIPTS[script] for script in sorted(scripts)), *(one.keys for one in needs)]:
        for kind, commands in some.items():
            by_kind[kind].update(commands.split())
    for kind, allowed in by_kind.items():
        if rest := allowed - by_kind.get(f"any_{kind}", set()):
            yield kind, " ".join(sorted(rest))


def sentinel_grants() -> list[Grant]:
    """Return the permissions that every role needs on Sentinels with a login: to read the address of the server."""
    return [Grant(frozenset({"sentinel|masters"}))]


def _names(settings: BridgeSettings) -> dict[str, list[Name]]:
    """Return the names of the keys and channels of each kind."""
    keys, group = Keys(settings.channel_prefix), settings.group
    any_group = {f"any_{kind}": [prefix(getattr(keys, kind)(""))] for kind in _OF_GROUP}
    all_by_id = [prefix(getattr(keys, kind)("", "").rstrip(":") + ":") for kind in _OF_GROUP_BY_ID]
    return {
        "journal": [exact(keys.journal)],
        "aside": [prefix(keys.aside(""))],
        "journals": [exact(keys.journal), prefix(keys.aside(""))],
        "journal_start": [exact(keys.journal_start)],
        "set_aside": [exact(keys.set_aside)],
        "group_settings": [exact(keys.group_settings)],
        **{kind: [prefix(getattr(keys, kind)(""))] for kind in _BY_ID},
        "rate": [prefix(keys.rate("").rpartition(":")[0] + ":")],
        **{kind: [exact(getattr(keys, kind)(group))] for kind in _OF_GROUP},
        **{kind: [prefix(getattr(keys, kind)(group, ""))] for kind in _OF_GROUP_BY_ID},
        **any_group,
        "all_of_any_group": [*(name for some in any_group.values() for name in some), *all_by_id],
        "events": [prefix(settings.channel_prefix)],
        "all_events": [literal_pattern(keys.all_channels)],
        "listened_to": [literal_pattern(keys.channels(pattern)) for pattern in settings.listen_types],
        "heartbeat": [exact(keys.heartbeat)],
    }

"""The permissions that each script needs on each kind of keys."""

from __future__ import annotations

from collections.abc import Mapping

#: The commands of each script by kind of key, which is a method of Keys. After a comma: a case in which it needs more.
SCRIPTS: Mapping[str, Mapping[str, str]] = {
    "acknowledge_sent": {
        "journal": "xack",
        "done": "mget",
        "inflight": "zrem zadd",
        "inflight_tasks": "hdel hset",
        "fencing_token": "get",
    },
    "append": {
        "journal": "xadd xrange",
        "group_settings": "hvals",
        "seen": "get set",
        "consequences": "zadd zcard zremrangebyscore pexpire unlink",
    },
    "append, limited": {"rate": "get incr pexpire"},
    "backlog": {"journal": "exists xlen xrange xrevrange xinfo|groups xpending"},
    "claim": {"journal": "xautoclaim", "fencing_token": "incrby"},
    "create_group": {"journal": "xgroup|create", "journal_start": "del", "fencing_token": "incrby"},
    "drop": {"dead": "xrange xdel", "dead_size": "hmget hincrby"},
    "elect": {"leader": "get set del"},
    "elect, for the queues": {"queue_leader": "get set del"},
    "end": {"done": "set", "lease": "del", "inflight": "zrem", "inflight_tasks": "hdel"},
    "find_overdue": {
        "inflight": "zrangebyscore zrem",
        "inflight_tasks": "hget hdel",
        "queue_watermarks": "hmget hrandfield hdel",
    },
    "headers": {"journal": "xrevrange"},
    "leave": {"journal": "xpending xinfo|consumers xgroup|delconsumer"},
    "postpone": {"inflight": "zrem zadd"},
    "publish": {
        "journal": "xadd",
        "seen": "get set",
        "consequences": "zadd zcard zremrangebyscore pexpire unlink",
    },
    "publish, again": {"seen": "pexpire"},
    "publish, with the event key": {"event": "set"},
    "move_back": {
        "journal": "xadd",
        "set_aside": "lrem",
        "journals": "xinfo|stream",
        "aside": "xinfo|groups xpending xrange xdel unlink",
        "seen": "get set",
    },
    "release": {"lease": "hget hset hdel pexpire", "inflight_tasks": "hget hset", "inflight": "zadd"},
    "renew": {"lease": "hget hset hdel pexpire"},
    "replay": {
        "journal": "xadd",
        "replay": "hget hmget hset hincrby pexpire",
        "dead": "xrange xdel",
        "dead_size": "hmget hincrby",
        "inflight": "zrem",
        "inflight_tasks": "hdel",
        "replays": "zadd pexpire",
        "done": "get set",
    },
    "report_presence": {
        "subscribers": "hgetall hdel hset pexpire",
        "group_settings": "hset hsetnx",
        "fencing_token": "incrby",
    },
    "report_worker": {"workers": "hset pexpire"},
    "set_aside": {
        "journal": "exists xinfo|groups xgroup|create xsetid",
        "journals": "rename xinfo|stream",
        "journal_start": "del",
        "set_aside": "rpush",
        "any_fencing_token": "incrby",
    },
    "start_run": {
        "done": "exists",
        "lease": "hmget hset hdel pexpire",
        "inflight": "zrem zadd",
        "inflight_tasks": "hget hset hdel",
        "queue_watermarks": "hget hset",
        "starts": "hincrby",
        "dead": "xrange xdel",
        "dead_size": "hmget hincrby",
    },
    "sweep_overdue": {"inflight": "zrem zadd", "inflight_tasks": "hget hdel", "done": "exists", "lease": "hmget"},
    "trim": {
        "journal": "exists xrange xinfo|groups xpending xack xtrim",
        "journals": "xinfo|stream",
        "group_settings": "hget hdel",
        "journal_start": "get set",
    },
    "write_dead_letter": {
        "dead": "xadd xlen xrange xdel",
        "dead_size": "hmget hset hincrby",
        "dead_letter_dedup": "get set",
    },
    "write_dead_letter, of a task": {"done": "set", "lease": "del", "inflight": "zrem", "inflight_tasks": "hdel"},
    "write_dead_letter, giving up": {
        "done": "exists",
        "lease": "hget",
        "inflight": "zadd",
        "inflight_tasks": "hget hset",
    },
}

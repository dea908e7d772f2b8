"""The permissions of each role on a Redis that is Celery's broker or result backend; see ``bus.py`` for the bus.

kombu and Celery choose these commands. The tests record the commands of a worker, to make sure that this list is
complete and minimal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from celery import Celery
from kombu.transport import redis as kombu_redis

from bridge.operations.acl.bus import Role
from bridge.operations.acl.rules import CONNECTING, Grant, Name, exact, granted, literal_pattern, prefix

#: kombu stores here, for each exchange, which queues are bound to it, and until when.
_BINDINGS = "_kombu.binding"


class BrokerKeys:
    """Names of the keys and channels that kombu uses on one Redis.

    Arguments:
        app: The application whose broker it is.
        connection: A kombu connection to it, which need not be open.
        queues: Names of the task queues.
    """

    def __init__(self, app: Celery, connection: Any, queues: Iterable[str]) -> None:
        self._options = connection.transport_options
        self._prefix = str(self._option("global_keyprefix"))
        self._mailbox = app.conf.control_exchange
        self._events = app.conf.event_exchange
        self._event_queues = app.conf.event_queue_prefix
        fanout = self._option("fanout_prefix")
        start = fanout if isinstance(fanout, str) else kombu_redis.Channel.keyprefix_fanout if fanout else ""
        database = str(connection.virtual_host or "0").strip("/") or "0"
        self._fanout = f"{self._prefix}{start.format(db=database)}"
        self.database = int(database) if database.isdigit() else 0
        #: Whether tasks are sent to exchanges rather than directly to their queues.
        self.exchanges = any(queue.exchange.type != "direct" for queue in app.amqp.queues.values())
        self.tasks = [name for queue in sorted(queues) for name in self._queue(exact(f"{self._prefix}{queue}"))]

    def _option(self, name: str) -> Any:
        return self._options.get(name, getattr(kombu_redis.Channel, name))

    def _queue(self, name: Name) -> Iterator[Name]:
        """Yield the list for messages of priority 0, and the lists for other priorities."""
        yield name
        separator, steps = self._option("sep"), [str(step) for step in self._option("priority_steps") if step]
        single = {len(step) for step in steps} == {1}
        globs = {f"[{''.join(steps)}]": steps[0]} if single else {step: step for step in steps}
        for glob, step in globs.items():
            yield Name(f"{name.pattern}{'?' * len(separator)}{glob}", f"{name.sample}{separator}{step}")

    def _anybodys(self, queue: str) -> list[Name]:
        """Return the queues that processes create for themselves: the name of each starts with that of its process."""
        end = exact(queue)
        return list(self._queue(Name(f"{exact(self._prefix).pattern}*.{end.pattern}", f"{self._prefix}me.{queue}")))

    @property
    def replies(self) -> list[Name]:
        """Queues for replies of workers, one for each process that sends them requests."""
        return self._anybodys(f"reply.{self._mailbox}.pidbox")

    @property
    def orders(self) -> list[Name]:
        """Queues of workers for remote control commands; kombu broadcasts these, and only deletes the queues."""
        return self._anybodys(f"{self._mailbox}.pidbox")

    @property
    def listeners(self) -> list[Name]:
        """Queues of the receivers of worker events; kombu only deletes these, too."""
        name = prefix(f"{self._prefix}{self._event_queues}.")
        return list(self._queue(name))[:1]

    @property
    def bindings(self) -> list[Name]:
        """Keys that store which queues are bound to which exchanges."""
        return [prefix(f"{self._prefix}{_BINDINGS}")]

    def kept(self, name: str) -> list[Name]:
        """Return the key in which a worker stores unacknowledged messages."""
        return [exact(f"{self._prefix}{self._option(name)}")] if self._option("ack_emulation") else []

    @property
    def order_channel(self) -> str:
        """Channel for remote control commands."""
        return f"{self._fanout}{self._mailbox}.pidbox"

    def events(self, what: str) -> str:
        """Return the channel for worker events of kind *what*."""
        topic = f"{self._fanout}{self._events}"
        return f"{topic}/{what}" if self._option("fanout_patterns") else topic


def broker_grants(role: Role, keys: BrokerKeys, *, subscriber: bool = True) -> list[Grant]:
    """Return the permissions that a role needs on the broker; none for the publisher."""
    if role == "publisher":
        return []
    keyless = {"multi", "exec"} | CONNECTING - {"client|setname"}
    if keys.database:
        keyless.add("select")
    bindings, tasks = keys.bindings, keys.tasks
    binding = "sadd smembers" if keys.exchanges else "sadd"
    if role == "subscriber":
        return [Grant(frozenset(keyless | {"info"})), *granted(("lpush llen lindex", tasks), (binding, bindings))]
    # kombu: every process that consumes messages, replies or worker events also restores messages that were not
    # acknowledged in time.
    taking = [
        ("brpop", keys.replies),
        (f"{binding} evalsha srem zadd zrangebyscore zrem exists del", bindings),
        ("llen rpush", tasks),
        ("hget hdel watch", keys.kept("unacked_key")),
        ("zrem zrange", keys.kept("unacked_index_key")),
        ("set evalsha get del", keys.kept("unacked_mutex_key")),
    ]
    keyless |= {"script|load", "script|exists", "time", "punsubscribe"}
    order = exact(keys.order_channel)
    if role == "operator":
        return [
            Grant(frozenset(keyless | {"info", "config|get"})),
            *granted(
                *taking,
                ("del llen", [*keys.replies, *keys.listeners]),
                channels=[("publish", [order]), ("psubscribe", [literal_pattern(keys.events("*"))])],
            ),
        ]
    return [
        Grant(frozenset(keyless | ({"info"} if subscriber else set()))),
        *granted(
            *taking,
            ("lpush brpop lindex" if subscriber else "lpush brpop", tasks),
            ("lpush", keys.replies),
            ("smembers", bindings),
            ("del llen", [*keys.orders, *keys.listeners]),  # and replies, whose names have the same ending as orders
            ("hset", keys.kept("unacked_key")),
            ("zadd", keys.kept("unacked_index_key")),
            channels=[
                ("publish psubscribe", [literal_pattern(keys.order_channel)]),
                ("psubscribe", [literal_pattern(keys.events("worker.*"))]),
                ("publish", [Name(exact(keys.events("")).pattern + "*", keys.events("task.multi"))]),
            ],
        ),
    ]


def result_grants(role: Role, backend: Any) -> list[Grant]:
    """Return the permissions that a role needs on the result backend; in Celery, senders of tasks subscribe there.

    Arguments:
        backend: A ``RedisBackend``; its stubs lack the names of its keys.
    """
    if role == "publisher":
        return []
    tasks, groups = [prefix(backend.task_keyprefix.decode())], [prefix(backend.group_keyprefix.decode())]
    keyless = CONNECTING - {"client|setname"} | ({"select"} if backend.connparams.get("db") else set())
    if role == "operator":
        return [Grant(keyless), *granted(("get", tasks))]
    listening = ("subscribe", tasks)
    if role == "subscriber":
        return [Grant(keyless | {"unsubscribe"}), *granted(channels=[listening])]
    return [
        Grant(keyless | {"unsubscribe", "multi", "exec", "script|load"}),
        *granted(
            ("get setex", tasks),
            ("evalsha get set setex del expire exists sadd sismember zadd zcount zrange", groups),
            channels=[listening, ("publish", [*tasks, *groups])],
        ),
    ]

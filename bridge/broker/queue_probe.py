"""How many messages wait in queues of the broker, for how long, and who takes from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, TypeVar

from celery import Celery
from redis import Redis

from bridge.broker import connection as broker
from bridge.config import is_redis
from bridge.handlers import SENT_HEADER

T = TypeVar("T")

#: Longest wait for each reply of RabbitMQ.
_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class QueueLoad:
    """One queue as the broker shows it.

    Arguments:
        messages: How many messages wait; those that workers have fetched do not count.
        consumers: How many consumers it has; None if the broker does not know.
        heads: Identifies the messages that leave the queue next, one for each priority; empty if the broker does not
            show them.
        since_ms: Since when the oldest of them has waited, ms since the epoch, by the clock of its sender: when it was
            sent, or its ``eta``. None if that is not known.
        delayed: Whether this is an ``eta``. So if it is in the future, none of them waits yet.
    """

    messages: int
    consumers: int | None = None
    heads: tuple[str, ...] = ()
    since_ms: int | None = None
    delayed: bool = False


class QueueProbe:
    """Measures queues over its own connection, which it opens when it is first used. Used by one thread.

    Redis returns the length of a list and its last element in the same time, whatever the length. RabbitMQ reports a
    queue when it is declared passively.

    Arguments:
        app: The Celery application whose broker it is.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None  # kombu's stubs are incomplete

    def measure(self, queues: Iterable[str]) -> dict[str, QueueLoad]:
        """Return the queues that can be measured: none for brokers other than Redis and RabbitMQ.

        Raises:
            Exception: Whatever the broker's client raises; the next call connects again.
        """
        try:
            connection = self._open()
            if is_redis(connection):
                return _lists(connection.default_channel, sorted(queues))
            if broker.is_rabbitmq(connection):
                return {name: load for name in sorted(queues) if (load := _declared(connection, name)) is not None}
        except BaseException:
            self.close()
            raise
        return {}

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it may have failed
                broker.close(connection, failed=True)

    def _open(self) -> Any:
        if self._connection is None:
            connection = broker.probe_connection(self._app)
            self._connection = connection
            if is_redis(connection) or broker.is_rabbitmq(connection):
                broker.establish(connection, _TIMEOUT_S)
        return self._connection


def _declared(connection: Any, queue: str) -> QueueLoad | None:
    """Return what RabbitMQ reports of a queue; None if it does not exist, or is exclusive to another connection."""
    channel = connection.channel()
    try:
        declared = channel.queue_declare(queue, passive=True)
    except connection.channel_errors:
        return None
    finally:
        channel.close()
    return QueueLoad(int(declared.message_count), int(declared.consumer_count))


def _lists(channel: Any, queues: Sequence[str]) -> dict[str, QueueLoad]:
    """Return the queues in a Redis, each of which is a list for each step of the priorities."""
    client = Redis(connection_pool=channel.pool)
    prefix, steps = channel.global_keyprefix, channel.priority_steps
    keys = {queue: [f"{prefix}{channel._q_for_pri(queue, step)}" for step in steps] for queue in queues}
    lengths = _ask(client, [("LLEN", key) for lists in keys.values() for key in lists], int)
    heads = _ask(client, [("LINDEX", key, -1) for key, length in lengths.items() if length], bytes)
    found = {}
    for queue, lists in keys.items():
        if lengths.keys() >= set(lists):
            first = {key: heads[key] for key in lists if key in heads}
            since_ms, delayed = min(filter(None, map(_since_ms, first.values())), default=(None, False))
            identities = tuple(_identity(key, message) for key, message in first.items())
            found[queue] = QueueLoad(sum(lengths[key] for key in lists), None, identities, since_ms, delayed)
    return found


def _ask(client: Redis, commands: Sequence[tuple[Any, ...]], kind: type[T]) -> dict[str, T]:
    """Return the replies of one kind by key, without those that are errors: a key may be of another type."""
    if not commands:
        return {}
    with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    return {command[1]: reply for command, reply in zip(commands, replies, strict=True) if isinstance(reply, kind)}


def _identity(key: str, message: bytes) -> str:
    return blake2b(key.encode() + b" " + message, digest_size=8).hexdigest()


def _since_ms(message: bytes) -> tuple[int, bool] | None:
    """Return when a message began to wait, and whether this is its ``eta``; None if it does not say so.

    A message that a worker has fetched and given back, or that is for a retry, was sent long before.
    """
    with suppress(ValueError, TypeError, KeyError, AttributeError):  # any program can write to a queue
        headers = json.loads(message)["headers"]
        if eta := headers.get("eta"):
            return int(datetime.fromisoformat(eta).timestamp() * 1000), True
        if not headers.get("redelivered") and not headers.get("retries"):
            return int(headers[SENT_HEADER]), False
    return None

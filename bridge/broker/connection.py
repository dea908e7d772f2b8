"""The connection to Celery's broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.transport import pyamqp
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import RedisError

from bridge.broker import confirms
from bridge.config import Address

#: kombu waits for ever for a broker that is gone, unless told; these are for Redis, where it is so.
_REDIS_BROKER_TIMEOUTS = {"socket_timeout": 10.0, "socket_connect_timeout": 3.0, "socket_keepalive": True}
#: For those who only look whether it is there.
_LOOK_TIMEOUT_S = 1.0
_LOOK_TIMEOUTS = {
    "socket_timeout": _LOOK_TIMEOUT_S,
    "socket_connect_timeout": _LOOK_TIMEOUT_S,
    "retry_on_timeout": False,
}


def connect(app: Celery) -> Connection:
    """Return a connection for sending, which is made with its first use."""
    return _connection(app, _REDIS_BROKER_TIMEOUTS | app.conf.broker_transport_options)


def probe_connection(app: Celery) -> Connection:
    """Return a connection for those who only look: made with its first use, it waits a second for a broker."""
    return _connection(app, _LOOK_TIMEOUTS, connect_timeout=_LOOK_TIMEOUT_S)


def probe(app: Celery) -> None:
    """Connect to the broker and let go again; takes some seconds at most.

    Raises:
        Exception: It cannot be reached, or refuses.
    """
    with probe_connection(app) as connection:
        establish(connection, _LOOK_TIMEOUT_S)
        if is_rabbitmq(connection):
            with suppress(*connection.channel_errors):  # this user may not, and it answers
                confirms.probe_channel(connection.default_channel, _LOOK_TIMEOUT_S)


def establish(broker: Connection, timeout_s: float) -> None:
    """Connect now, to the first of its addresses that answers.

    Arguments:
        timeout_s: Longest wait of RabbitMQ's client from then on, for each read and write.

    Raises:
        Exception: Whatever the broker's client raises.
    """
    broker.ensure_connection(max_retries=max(1, len(broker.alt)), interval_start=0, interval_step=0)
    if is_rabbitmq(broker):
        # Not SO_RCVTIMEO, as read_timeout has it: py-amqp reads on for ever after that, in the middle of a frame.
        broker.connection.sock.settimeout(timeout_s)


def close(broker: Connection, *, failed: bool = False) -> None:
    """Close a connection without waiting long for the broker; if it has *failed*, not at all where that can be done."""
    rabbitmq = is_rabbitmq(broker)
    if rabbitmq and broker.connected:
        broker.connection.sock.settimeout(_LOOK_TIMEOUT_S)  # TLS has a last word in any case
    if rabbitmq and failed:
        broker.collect()
    else:
        broker.release()


def is_rabbitmq(broker: Connection) -> bool:
    """Whether *broker* speaks AMQP, by the client whose confirms we understand."""
    return isinstance(broker.transport, pyamqp.Transport)


def is_redis(broker: Connection) -> bool:
    """Whether the queues of *broker* are lists of one Redis, maybe behind Sentinels."""
    return type(broker.transport) in (kombu_redis.Transport, kombu_redis.SentinelTransport)


def _connection(app: Celery, redis_options: Mapping[str, Any], **options: Any) -> Connection:
    connection = app.connection_for_write(**options)
    if connection.transport.driver_type == "redis":
        # Before those of the configuration; which of them other brokers take is theirs to say.
        connection = app.connection_for_write(transport_options=redis_options, **options)
    return connection


def push(channel: Any, key: str, texts: Sequence[bytes]) -> None:
    """Push to a list of the Redis behind a kombu *channel*, past what kombu does for each message.

    Raises:
        RedisError: Redis failed; all were pushed, or none.
    """
    Redis(connection_pool=channel.pool).lpush(key, *texts)


def is_redis_at(broker: Connection, url: str) -> bool:
    """Whether *broker* is the Redis database at *url*, as the same user, as far as the two addresses tell."""
    if not is_redis(broker) or "://" in (broker.hostname or ""):
        return False  # another broker, or a socket
    bus, service = Address.parse(url), service_of(broker)
    kind = "server" if service is None else "sentinel"
    database = int(str(broker.virtual_host or "0").strip("/") or 0)
    of_broker = (kind, service or "", endpoints(broker), database, broker.userid or None, bool(broker.ssl))
    login = (bus.options.get("db", 0), bus.options.get("username"))
    return of_broker == (bus.kind, bus.service, set(bus.hosts), *login, bus.secure)


def service_of(broker: Connection) -> str | None:
    """Return what its Sentinels call *broker*; None when it is behind none."""
    if not isinstance(broker.transport, kombu_redis.SentinelTransport):
        return None
    return str((broker.transport_options or {}).get("master_name", ""))


def endpoints(broker: Connection) -> set[tuple[str, int]]:
    """Return host and port of each server, or Sentinel, that the address of *broker* names."""
    default_port = int(broker.transport.default_port or 0)
    parts = [urlsplit(url) for url in broker.alt]
    alternatives = {(part.hostname or "127.0.0.1", part.port or default_port) for part in parts}
    return alternatives or {(broker.hostname or "127.0.0.1", broker.port or default_port)}


def is_outage(error: Exception, connection: Any) -> bool:
    """Whether an error while sending is the broker's fault, not that of the message."""
    # kombu counts KeyError among the errors of a connection to Redis; user code raises it as well.
    of_broker = [kind for kind in connection.connection_errors + connection.channel_errors if kind is not KeyError]
    return isinstance(error, (OperationalError, RedisError, OSError, *of_broker))

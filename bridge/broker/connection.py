"""Connections to Celery's broker, and what kind of broker it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.transport import pyamqp
from redis import Redis
from redis.exceptions import RedisError

from bridge.broker import confirms
from bridge.config import REDIS_TRANSPORT, Address, endpoints, is_redis, service_of

#: For probes, which only check that the broker answers.
_PROBE_TIMEOUT_S = 1.0
_PROBE_TIMEOUTS = {
    "socket_timeout": _PROBE_TIMEOUT_S,
    "socket_connect_timeout": _PROBE_TIMEOUT_S,
    "retry_on_timeout": False,
}


def connect(app: Celery) -> Connection:
    """Return a connection for sending; it connects when it is first used."""
    return _connection(app, REDIS_TRANSPORT | app.conf.broker_transport_options)


def probe_connection(app: Celery) -> Connection:
    """Return a connection for probes: it connects when it is first used, and waits one second for the broker."""
    return _connection(app, _PROBE_TIMEOUTS, connect_timeout=_PROBE_TIMEOUT_S)


def probe(app: Celery) -> None:
    """Check that the broker accepts a connection and, if it is RabbitMQ, messages. This takes some seconds at most.

    Raises:
        Exception: The broker cannot be reached, or refuses.
    """
    with probe_connection(app) as connection:
        establish(connection, _PROBE_TIMEOUT_S)
        if is_rabbitmq(connection):
            with suppress(*connection.channel_errors):  # the user has no permission to publish, but RabbitMQ answers
                confirms.probe_channel(connection.default_channel, _PROBE_TIMEOUT_S)


def establish(broker: Connection, timeout_s: float) -> None:
    """Connect now, to the first address of *broker* that answers.

    Arguments:
        timeout_s: Longest wait for each read and write of RabbitMQ from then on.

    Raises:
        Exception: Whatever the broker's client raises.
    """
    broker.ensure_connection(max_retries=max(1, len(broker.alt)), interval_start=0, interval_step=0)
    if is_rabbitmq(broker):
        # Not read_timeout, which sets SO_RCVTIMEO: in the middle of a frame py-amqp ignores this and reads on.
        broker.connection.sock.settimeout(timeout_s)


def close(broker: Connection, *, failed: bool = False) -> None:
    """Close a connection without a long wait for the broker. If it has *failed*, do not wait for RabbitMQ."""
    rabbitmq = is_rabbitmq(broker)
    if rabbitmq and broker.connected:
        broker.connection.sock.settimeout(_PROBE_TIMEOUT_S)  # TLS sends a closing message in any case
    if rabbitmq and failed:
        broker.collect()
    else:
        broker.release()


def is_rabbitmq(broker: Connection) -> bool:
    """Whether *broker* is used with py-amqp, whose confirms :mod:`bridge.broker.confirms` reads."""
    return isinstance(broker.transport, pyamqp.Transport)


def _connection(app: Celery, redis_options: Mapping[str, Any], **options: Any) -> Connection:
    connection = app.connection_for_write(**options)
    if connection.transport.driver_type == "redis":
        # Other transports may not accept these options.
        connection = app.connection_for_write(transport_options=redis_options, **options)
    return connection


def push(channel: Any, key: str, texts: Sequence[bytes]) -> None:
    """Push to a list of the Redis server of a kombu *channel*, without the work of kombu for each message.

    Raises:
        RedisError: Redis failed. It has all of *texts* or none.
    """
    Redis(connection_pool=channel.pool).lpush(key, *texts)


def is_redis_at(broker: Connection, url: str) -> bool:
    """Whether *broker* is the Redis database at *url*, with the same user, judged by the two addresses."""
    if not is_redis(broker) or "://" in (broker.hostname or ""):
        return False  # another kind of broker, or a Unix socket
    bus, service = Address.parse(url), service_of(broker)
    kind = "server" if service is None else "sentinel"
    database = int(str(broker.virtual_host or "0").strip("/") or 0)
    of_broker = (kind, service or "", set(endpoints(broker)), database, broker.userid or None, bool(broker.ssl))
    login = (bus.options.get("db", 0), bus.options.get("username"))
    return of_broker == (bus.kind, bus.service, set(bus.hosts), *login, bus.secure)


def broker_id(app: Celery) -> str:
    """Return a name of the broker of an application, without credentials. Applications with the same address share it.

    A server that has several addresses, such as a name and a number, has several of these names.
    """
    broker = app.connection_for_read()
    database = str(broker.virtual_host or "0").strip("/") or "0"
    place = (broker.transport.driver_type, service_of(broker), sorted(endpoints(broker)), database)
    return blake2b(repr(place).encode(), digest_size=8).hexdigest()


def is_outage(error: BaseException, connection: Any) -> bool:
    """Whether an error during sending was caused by the broker, not by the message."""
    # For kombu, KeyError is an error of a connection to Redis; user code raises it as well.
    of_broker = [kind for kind in connection.connection_errors + connection.channel_errors if kind is not KeyError]
    return isinstance(error, (OperationalError, RedisError, OSError, *of_broker))

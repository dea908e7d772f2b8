"""Queues, exchanges and bindings of RabbitMQ: what has to exist before a message is published."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from kombu import Connection, Queue
from kombu.transport.native_delayed_delivery import (
    MAX_LEVEL,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

#: The exchange to which Celery sends messages that a quorum queue gets later.
DELAYS = level_name(MAX_LEVEL)


class Unroutable(Exception):
    """An exchange does not exist."""


class Declarations:
    """What is known to exist at the broker, as far as one connection has declared or checked it.

    Arguments:
        app: The Celery application.
        connection: To its broker.
        checks_exchanges: Whether messages can be published only to exchanges that exist, as with RabbitMQ.
    """

    def __init__(self, app: Celery, connection: Connection, *, checks_exchanges: bool) -> None:
        self._app = app
        self._connection: Any = connection  # its stubs know no set of declared entities
        self._checks_exchanges = checks_exchanges
        self._queues: set[str] = set()
        #: Names of exchanges, and of bindings to :data:`DELAYS`.
        self._exchanges: set[str] = set()

    def has_queue(self, name: str) -> bool:
        """Whether the queue was declared."""
        return name in self._queues

    def add_queue(self, name: str) -> None:
        """Remember that the queue was declared."""
        self._queues.add(name)

    def forget(self) -> None:
        """Declare and check everything again, because something was deleted."""
        self._queues.clear()
        self._exchanges.clear()
        self._connection.declared_entities.clear()

    def require_exchange(self, name: str) -> None:
        """Check that an exchange exists which is not the bridge's to declare.

        Raises:
            Unroutable: It does not exist. Publishing to it would close the channel, and fail the whole batch.
        """
        if not self._checks_exchanges or not name or name in self._exchanges:
            return
        channel = self._connection.channel()
        try:
            channel.exchange_declare(name, "", passive=True)
        except NotFound as error:
            raise Unroutable(f"the broker has no exchange {name}") from error
        finally:
            channel.close()
        self._exchanges.add(name)

    def bind_delay_exchange(self, queue: Queue) -> None:
        """Make sure that messages sent to :data:`DELAYS` reach *queue*. Workers do this too, when they start."""
        name = f"{DELAYS} {queue.name}"
        if name in self._exchanges:
            return
        try:
            self.require_exchange(DELAYS)
        except Unroutable:
            kind = self._app.conf.broker_native_delayed_delivery_queue_type
            declare_native_delayed_delivery_exchanges_and_queues(self._connection, kind)
            self._exchanges.add(DELAYS)
        queue(self._connection.default_channel).declare()  # with its exchange, which is what gets bound
        bind_queue_to_native_delayed_delivery_exchange(self._connection, queue)
        self._exchanges.add(name)

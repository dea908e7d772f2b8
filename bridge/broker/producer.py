"""The connection over which one thread sends task messages to the broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from kombu import Queue
from kombu.transport.native_delayed_delivery import (
    MAX_LEVEL,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

from bridge.broker import connection as broker
from bridge.broker.confirms import Blocked, Confirms

#: Where Celery sends what is to be delivered later to a quorum queue.
DELAYS = level_name(MAX_LEVEL)


class Unroutable(Exception):
    """An exchange that is not there."""


class BrokerProducer:
    """Made with its first use, and anew after an error; used by one thread.

    Arguments:
        app: The Celery application whose broker it leads to.
        rabbitmq_timeout_s: Longest wait for a read or write of RabbitMQ, whose client would wait for ever, and longest
            silence of a RabbitMQ that owes confirms to a batch.
    """

    def __init__(self, app: Celery, rabbitmq_timeout_s: float) -> None:
        self._app = app
        self._rabbitmq_timeout_s = rabbitmq_timeout_s
        self._producer: Any = None  # kombu.Producer; its stubs know no batch()
        self._confirms: Confirms | None = None
        #: Queues that were declared over this connection, and exchanges that were seen to be there.
        self._declared: set[str] = set()
        self._exchanges: set[str] = set()
        #: Task ids of what RabbitMQ has confirmed, for the sender to take out: what is left is of batches that failed.
        self.confirmed: set[str] = set()
        #: Task ids of what the last batch held and the broker had no queue for.
        self.unroutable: set[str] = set()

    @property
    def producer(self) -> Any:
        """A producer on this connection."""
        if self._producer is None:
            connection: Any = broker.connect(self._app)
            if broker.is_rabbitmq(connection):
                try:
                    broker.establish(connection, self._rabbitmq_timeout_s)
                    channel = connection.default_channel
                    self._confirms = Confirms(channel, self.confirmed, self._rabbitmq_timeout_s)
                except BaseException:
                    broker.close(connection, failed=True)
                    raise
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    @contextmanager
    def batch(self) -> Iterator[Any]:
        """Yield a producer for some messages; after the block the broker has them, as far as it tells.

        Raises:
            Exception: Whatever the broker's client raises, which leaves open which of them went out.
        """
        producer = self.producer
        self.wait_for_confirms()
        with producer.batch():
            yield producer
        self.unroutable = self.wait_for_confirms()

    def wait_for_confirms(self) -> set[str]:
        """Wait for what the broker owes; return the task ids of messages for which it has no queue."""
        return set() if self._confirms is None else self._confirms.wait_for_confirms()

    def is_new(self, queue: str) -> bool:
        """Whether the queue of this name has not been declared over this connection."""
        return queue not in self._declared

    def declared(self, queue: str) -> None:
        """Note that the queue of this name is there."""
        self._declared.add(queue)

    def forget_declared(self) -> None:
        """Declare everything anew, for something has been deleted."""
        self._declared.clear()
        self._exchanges.clear()
        self.producer.connection.declared_entities.clear()

    def require_exchange(self, exchange: str) -> None:
        """Make sure that an exchange is there which is not ours to declare.

        Raises:
            Unroutable: It is not. To publish to it would be an error of the channel, and fail the whole batch.
        """
        connection = self.producer.connection
        if self._confirms is None or not exchange or exchange in self._exchanges:
            return
        channel = connection.channel()
        try:
            channel.exchange_declare(exchange, "", passive=True)
        except NotFound as error:
            raise Unroutable(f"the broker has no exchange {exchange}") from error
        finally:
            channel.close()
        self._exchanges.add(exchange)

    def bind_delay_exchange(self, queue: Queue) -> None:
        """See to it that what is sent to :data:`DELAYS` comes to *queue*; workers do that too, when they start."""
        connection, name = self.producer.connection, f"{DELAYS} {queue.name}"
        if name in self._exchanges:
            return
        try:
            self.require_exchange(DELAYS)
        except Unroutable:
            kind = self._app.conf.broker_native_delayed_delivery_queue_type
            declare_native_delayed_delivery_exchanges_and_queues(connection, kind)
            self._exchanges.add(DELAYS)
        queue(self.producer.channel).declare()  # with its exchange, which is what gets bound
        bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        self._exchanges.add(name)

    def waiting(self, queue: str) -> int:
        """Return how many messages are in *queue*, those that workers have taken not counted."""
        producer = self.producer
        self.wait_for_confirms()
        # With Redis there is nothing to declare, and kombu looks for the queue without its global_keyprefix.
        passive = producer.connection.transport.driver_type != "redis"
        try:
            return int(producer.channel.queue_declare(queue, passive=passive).message_count)
        except producer.connection.channel_errors:
            self.close()  # an AMQP channel is of no use after that
            return 0  # there is no such queue

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        self.confirmed.clear()
        if self._producer is not None:
            broker.close(self._let_go())

    def fail(self, error: BaseException) -> None:
        """Give the connection up after an error, without waiting for the broker."""
        if self._producer is None or isinstance(error, Blocked):
            return  # RabbitMQ reads what is in a blocked connection later, even if we close it: wait for that
        broker.close(self._let_go(), failed=True)

    def _let_go(self) -> Any:
        connection, self._producer, self._confirms = self._producer.connection, None, None
        self._declared.clear()
        self._exchanges.clear()
        return connection

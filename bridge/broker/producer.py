"""The connection over which one thread sends task messages to the broker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery import Celery

from bridge.broker import connection as broker
from bridge.broker.confirms import Blocked, Confirms
from bridge.broker.declarations import Declarations, Unroutable
from bridge.broker.messages import Message, Refused
from bridge.broker.templates import send_by_celery
from bridge.handlers import detail_of


@dataclass(frozen=True)
class _Link:
    """One open connection.

    Arguments:
        producer: kombu's producer, whose stubs are incomplete.
        declarations: What is known to exist at the broker.
        confirms: RabbitMQ's publisher confirms; None for other brokers.
    """

    producer: Any
    declarations: Declarations
    confirms: Confirms | None


class _Sent(NamedTuple):
    """The messages of a batch that the broker does not have.

    ``refused`` cannot be sent; ``returned`` came back because no queue is bound to their exchange.
    """

    refused: list[Refused]
    returned: list[Message]


class BrokerProducer:
    """Sends task messages. It connects when it is first used, and again after an error. Used by one thread.

    It is the one owner of publisher confirms. Messages that RabbitMQ has confirmed before their batch failed are left
    out when the batch is published again.

    Arguments:
        app: The Celery application whose broker it connects to.
        rabbitmq_timeout_s: Longest wait for one read or write of RabbitMQ, and longest silence of a RabbitMQ that still
            has to confirm messages. py-amqp alone would wait without limit.
    """

    def __init__(self, app: Celery, rabbitmq_timeout_s: float) -> None:
        self._app = app
        self._rabbitmq_timeout_s = rabbitmq_timeout_s
        self._link: _Link | None = None
        #: Ids of confirmed tasks of batches that failed. It is empty while no batch waits to be published again.
        self._confirmed: set[str] = set()

    def publish(self, messages: Sequence[Message]) -> list[Refused]:
        """Publish *messages*; return when the broker has them, as far as it confirms that.

        An error leaves open which of them it has. Publish all of them again: they have the same task ids.

        Returns:
            Those that cannot be sent though the broker is available: user code that Celery calls failed, or the route
            leads to no queue.

        Raises:
            Exception: Whatever the broker's client raises.
        """
        with self._closing_on_errors():
            refused, returned = self._publish_batch(messages)
            if returned:
                # A queue or a binding was deleted after it was declared. If that is not the cause, the route leads to
                # no queue. This is not treated as an outage: it would block all other routes for an unknown time.
                self._open().declarations.forget()
                refused_again, returned = self._publish_batch(returned)
                detail = "the broker has no queue for it: bind one to its exchange"
                refused += refused_again + [Refused(message, "unroutable", detail) for message in returned]
            self._confirmed.difference_update(message.task_id for message in messages)
        return refused

    def push(self, texts: Mapping[str, Sequence[bytes]]) -> None:
        """Push to lists of the broker's Redis, past what kombu does for each message.

        Arguments:
            texts: What to push, by the key of the list.

        Raises:
            Exception: Whatever the broker's client raises. Of each list all or nothing was pushed.
        """
        with self._closing_on_errors():
            for key, values in texts.items():
                broker.push(self._open().producer.channel, key, values)

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in *queue*; those that workers have prefetched do not count.

        Raises:
            Exception: Whatever the broker's client raises.
        """
        with self._closing_on_errors():
            link = self._open()
            self._wait_for_confirms(link)
            # Redis has nothing to declare, and kombu would look the queue up without its global_keyprefix.
            passive = link.producer.connection.transport.driver_type != "redis"
            try:
                return int(link.producer.channel.queue_declare(queue, passive=passive).message_count)
            except link.producer.connection.channel_errors:
                self.close()  # the error has closed the AMQP channel
                return 0  # the queue does not exist

    def close(self) -> None:
        """Close the connection and forget what was confirmed; the next use opens another one."""
        self._confirmed.clear()
        link, self._link = self._link, None
        if link is not None:
            broker.close(link.producer.connection)

    def _open(self) -> _Link:
        if self._link is None:
            connection: Any = broker.connect(self._app)
            rabbitmq, answers = broker.is_rabbitmq(connection), None
            if rabbitmq:
                try:
                    broker.establish(connection, self._rabbitmq_timeout_s)
                    answers = Confirms(connection.default_channel, self._rabbitmq_timeout_s)
                except BaseException:
                    broker.close(connection, failed=True)
                    raise
            producer = self._app.amqp.Producer(connection, auto_declare=False)
            self._link = _Link(producer, Declarations(self._app, connection, checks_exchanges=rabbitmq), answers)
        return self._link

    def _publish_batch(self, messages: Sequence[Message]) -> _Sent:
        link, refused = self._open(), []
        self._wait_for_confirms(link)  # of a batch that was under way when RabbitMQ blocked the connection
        with link.producer.batch():
            for message in messages:
                if message.task_id in self._confirmed:
                    continue
                try:
                    self._publish(link, message)
                except Unroutable as error:
                    refused.append(Refused(message, "unroutable", str(error)))
                except BaseException as error:  # of user code, which may raise CancelledError or SystemExit too
                    if message.content is not None or broker.is_outage(error, link.producer.connection):
                        raise
                    refused.append(Refused(message, "message_failed", detail_of(error)))
        unroutable = self._wait_for_confirms(link)
        return _Sent(refused, [message for message in messages if message.task_id in unroutable])

    def _publish(self, link: _Link, message: Message) -> None:
        route = message.route
        if message.content is None or route.template is None:
            options = {**route.options, "task_id": message.task_id}
            if message.retries:
                options |= {"retries": message.retries, "countdown": None}  # only the first try is delayed
            send_by_celery(link.producer, route.task, message.event, options)
            return
        filled_in = route.template.filled_in(message.event, message.task_id, message.content)
        if route.template.delayed_to is not None:
            link.declarations.bind_delay_exchange(route.template.delayed_to)
        elif route.template.exchange:
            link.declarations.require_exchange(route.template.exchange)
        queue = next(iter(filled_in["declare"] or ()), None)
        if queue is not None and link.declarations.has_queue(queue.name):
            filled_in["declare"] = None  # kombu would check for every message whether it was declared
        link.producer.publish(**filled_in)
        if queue is not None:
            link.declarations.add_queue(queue.name)

    def _wait_for_confirms(self, link: _Link) -> set[str]:
        """Wait until RabbitMQ has answered; return the ids of tasks whose messages it returned."""
        if link.confirms is None:
            return set()
        unroutable = link.confirms.wait()
        self._confirmed |= link.confirms.take_confirmed()
        return unroutable

    @contextmanager
    def _closing_on_errors(self) -> Iterator[None]:
        """Close the connection after an error, without waiting for the broker."""
        try:
            yield
        except BaseException as error:
            link = self._link
            # RabbitMQ reads what is in a blocked connection later, even if it is closed: wait for its answers.
            if link is not None and not isinstance(error, Blocked):
                if link.confirms is not None:
                    self._confirmed |= link.confirms.take_confirmed()
                self._link = None
                broker.close(link.producer.connection, failed=True)
            raise

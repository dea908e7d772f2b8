"""A virtual host of RabbitMQ and its queues."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import amqp

from tests.support.servers.rabbitmq import RabbitNode


class Rabbit:
    """The virtual host of one test.

    Arguments:
        node: The node that has it.
    """

    def __init__(self, node: RabbitNode) -> None:
        self.name = node.new_virtual_host()
        self._node = node
        self._port = node.port

    @property
    def url(self) -> str:
        return self.url_at(self._port)

    def url_at(self, port: int) -> str:
        """Return the address with another port, that of a proxy."""
        return f"amqp://guest:guest@127.0.0.1:{port}/{self.name}"

    def channel(self) -> Any:
        """Return a channel of a new connection, which the caller closes, or the end of the node."""
        address = f"127.0.0.1:{self._port}"
        connection = amqp.Connection(address, "guest", "guest", virtual_host=self.name, connect_timeout=5)
        connection.connect()
        return connection.channel()

    def do(self, what: Callable[[Any], Any]) -> Any:
        """Call *what* with a channel and return its result."""
        channel = self.channel()
        connection = channel.connection
        try:
            return what(channel)
        finally:
            with suppress(amqp.AMQPError, OSError):
                connection.close()

    def limit_deliveries(self, count: int) -> None:
        """Have quorum queues drop a message after so many deliveries; RabbitMQ 4 does so after 20."""
        self._node.set_policy(self.name, ".*", json.dumps({"delivery-limit": count}))

    def length(self, queue: str = "celery") -> int:
        """Return the number of ready messages in a queue; 0 if the queue or the node does not exist."""
        try:
            return int(self.do(lambda channel: channel.queue_declare(queue, passive=True).message_count))
        except (amqp.AMQPError, OSError):
            return 0

    def is_there(self, queue: str) -> bool:
        """Return whether a queue exists."""
        try:
            self.do(lambda channel: channel.queue_declare(queue, passive=True))
        except amqp.NotFound:
            return False
        return True

    def take(self, queue: str = "celery") -> list[Any]:
        """Take all messages from a queue."""

        def take_all(channel: Any) -> list[Any]:
            return list(iter(lambda: channel.basic_get(queue, no_ack=True), None))

        return list(self.do(take_all))

    def tasks(self, queue: str = "celery") -> Counter[str]:
        """Take all messages from a queue; return how often each task was there with each event id."""
        messages = self.take(queue)
        return Counter(
            f"{message.properties['application_headers']['task']} {json.loads(message.body)[0][0]['id']}"
            for message in messages
        )

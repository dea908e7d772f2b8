"""RabbitMQ's publisher confirms: a message was accepted or refused, or was returned because no queue is bound.

py-amqp can wait for the confirm of every message, which is a round trip each. Here a whole batch is published first,
and its confirms are awaited together. A message that RabbitMQ has not confirmed counts as not sent.
"""

from __future__ import annotations

import select
from typing import Any

from amqp import Message, spec
from kombu.exceptions import OperationalError

#: Longest wait for a RabbitMQ that has blocked the connection: this may last hours, and a stop waits for it.
_BLOCKED_TIMEOUT_S = 1.0


class Blocked(OperationalError):
    """RabbitMQ is short of memory or disk. What was published is in the buffers of its connection: keep it open."""


class Confirms:
    """The confirms of one channel, for everything that is published on it, also by Celery.

    It replaces ``basic_publish`` of the channel, as py-amqp itself does for its own confirms. This was checked with
    py-amqp 5.4.2; ``tests/unit/broker/test_confirms.py`` fails when a release changes the method.

    Arguments:
        channel: py-amqp's, with nothing published on it yet.
        timeout_s: How long a broker that still has to confirm messages may be silent.
    """

    def __init__(self, channel: Any, timeout_s: float) -> None:
        self._channel = channel
        self._connection = channel.connection
        self._timeout_s = timeout_s
        self._readable = select.poll()
        self._readable.register(self._connection.sock, select.POLLIN)
        #: Delivery tag to task id of messages that wait for their confirm, in this order.
        self._unconfirmed: dict[int, str] = {}
        self._last_tag = 0
        self._blocked = False
        self._confirmed: set[str] = set()
        self._refused = 0
        self._returned: set[str] = set()
        channel.confirm_select()
        channel.basic_publish = self._publish
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._connection.on_blocked = self._on_blocked
        self._connection.on_unblocked = self._on_unblocked

    def wait(self) -> set[str]:
        """Wait until RabbitMQ has answered every message; return the task ids of those that it returned.

        Raises:
            Blocked: RabbitMQ accepts no messages now. Keep the connection and wait again.
            OperationalError: It did not answer in time, or it refused messages.
            Exception: Whatever py-amqp raises.
        """
        while self._unconfirmed or self._blocked:
            self._read()
        refused, self._refused = self._refused, 0
        returned, self._returned = self._returned, set()
        if refused:
            text = f"RabbitMQ refused {refused} messages: a queue is full or not available, see its log"
            raise OperationalError(text)
        return returned

    def take_confirmed(self) -> set[str]:
        """Return the task ids that RabbitMQ has confirmed since the last call."""
        confirmed, self._confirmed = self._confirmed, set()
        return confirmed

    def _publish(self, message: Any, exchange: str = "", routing_key: str = "", **_: Any) -> Any:
        """Publish a message in place of py-amqp's method.

        py-amqp reads what RabbitMQ has sent before each message, and waits without limit for the rest of a frame that
        has arrived in part.
        """
        while self._has_answers():
            self._read()
        if self._blocked:  # RabbitMQ would not read the message, and the connection might fill up in the middle of it
            self.wait()
        # RabbitMQ drops a message that expires in its queue silently; a worker that gets it records the task's end.
        message.properties.pop("expiration", None)
        self._last_tag += 1
        self._unconfirmed[self._last_tag] = message.properties.get("correlation_id", "")
        ticket, mandatory, immediate = 0, True, False
        arguments = (ticket, exchange, routing_key, mandatory, immediate)
        return self._channel.send_method(spec.Basic.Publish, "Bssbb", arguments, message)

    def _has_answers(self) -> bool:
        pending = getattr(self._connection.sock, "pending", None)  # TLS may have read more than was asked for
        return bool(self._readable.poll(0) or (pending is not None and pending()))

    def _read(self) -> None:
        try:
            self._connection.drain_events(timeout=_BLOCKED_TIMEOUT_S if self._blocked else self._timeout_s)
        except TimeoutError as error:
            if self._blocked:
                raise Blocked("RabbitMQ takes no messages: it is short of memory or disk, see its log") from error
            text = f"RabbitMQ did not confirm {len(self._unconfirmed)} messages within {self._timeout_s:.0f} s"
            raise OperationalError(text) from error

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._confirmed.update(task_id for task_id in self._answered(tag, multiple) if task_id not in self._returned)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._refused += len(self._answered(tag, multiple))

    def _on_return(self, _: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.add(message.properties.get("correlation_id", ""))  # its confirm follows

    def _answered(self, tag: int, multiple: bool) -> list[str]:
        """Return the task ids of the message with this tag and, if *multiple*, of all before it: they are answered."""
        if not multiple:
            return [self._unconfirmed.pop(tag)] if tag in self._unconfirmed else []
        tags = []
        for unconfirmed_tag in self._unconfirmed:
            if unconfirmed_tag > tag:
                break
            tags.append(unconfirmed_tag)
        return [self._unconfirmed.pop(answered_tag) for answered_tag in tags]

    def _on_blocked(self, _: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False


def probe_channel(channel: Any, timeout_s: float) -> None:
    """Publish a message that reaches no queue: RabbitMQ reports only to publishers that it accepts no messages.

    Raises:
        Blocked: It accepts none.
        Exception: Whatever py-amqp raises.
    """
    confirms = Confirms(channel, timeout_s)
    channel.basic_publish(Message(b""), "", "bridge-probe")
    confirms.wait()

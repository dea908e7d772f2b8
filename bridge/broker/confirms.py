"""RabbitMQ's answers to what is published: taken, refused, or that there is no queue for it.

py-amqp can wait for the answer to every message, which is a round trip each. Here the answers of a whole batch are
waited for together. What RabbitMQ has not confirmed counts as not sent.
"""

from __future__ import annotations

import select
from typing import Any

from amqp import Message, spec
from kombu.exceptions import OperationalError

#: Longest wait for a broker that takes no messages and says so: it may last hours, and a stop waits for us.
_BLOCKED_TIMEOUT_S = 1.0


class Blocked(OperationalError):
    """RabbitMQ is short of memory or disk. What was published waits in its connection, which must be kept for that."""


class Confirms:
    """The answers on one channel. Whoever publishes over it is counted, Celery as well.

    Arguments:
        channel: Of py-amqp, nothing published over it yet.
        arrived: Task ids of what RabbitMQ has taken are added to it.
        timeout_s: Longest silence of a broker that owes answers.
    """

    def __init__(self, channel: Any, confirmed: set[str], timeout_s: float) -> None:
        self._channel = channel
        self._connection = channel.connection
        self._arrived = confirmed
        self._timeout_s = timeout_s
        self._readable = select.poll()
        self._readable.register(self._connection.sock, select.POLLIN)
        #: Delivery tag to task id of what is not answered yet, in this order.
        self._open: dict[int, str] = {}
        self._last_tag = 0
        self._blocked = False
        self._refused = 0
        self._unroutable: set[str] = set()
        channel.confirm_select()
        channel.basic_publish = self._publish_counted
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._connection.on_blocked = self._on_blocked
        self._connection.on_unblocked = self._on_unblocked

    def wait_for_confirms(self) -> set[str]:
        """Wait until everything is answered; return the task ids of messages for which there is no queue.

        Raises:
            Blocked: RabbitMQ takes no messages now; the connection is to be kept and this to be called again.
            OperationalError: It does not answer, or refused messages.
            Exception: Whatever py-amqp raises.
        """
        while self._open or self._blocked:
            self._read()
        refused, self._refused = self._refused, 0
        unroutable, self._unroutable = self._unroutable, set()
        if refused:
            text = f"RabbitMQ refused {refused} messages: a queue is full or not available, see its log"
            raise OperationalError(text)
        return unroutable

    def _publish_counted(self, message: Any, exchange: str = "", routing_key: str = "", **_: Any) -> Any:
        """Take the place of py-amqp's method, which may look for answers for ever when one has come in part."""
        while self._has_answers():
            self._read()
        if self._blocked:  # more would not be read, and fill the connection in the middle of a message
            self.wait_for_confirms()
        # A message that expires in its queue ends without a word; a worker that gets it sees to the task's end.
        message.properties.pop("expiration", None)
        self._last_tag += 1
        self._open[self._last_tag] = message.properties.get("correlation_id", "")
        ticket, mandatory, immediate = 0, True, False
        arguments = (ticket, exchange, routing_key, mandatory, immediate)
        return self._channel.send_method(spec.Basic.Publish, "Bssbb", arguments, message)

    def _has_answers(self) -> bool:
        pending = getattr(self._connection.sock, "pending", None)  # of TLS
        return bool(self._readable.poll(0) or (pending is not None and pending()))

    def _read(self) -> None:
        try:
            self._connection.drain_events(timeout=_BLOCKED_TIMEOUT_S if self._blocked else self._timeout_s)
        except TimeoutError as error:
            if self._blocked:
                raise Blocked("RabbitMQ takes no messages: it is short of memory or disk, see its log") from error
            text = f"RabbitMQ did not confirm {len(self._open)} messages within {self._timeout_s:.0f} s"
            raise OperationalError(text) from error

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._arrived.update(task_id for task_id in self._answered(tag, multiple) if task_id not in self._unroutable)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._refused += len(self._answered(tag, multiple))

    def _on_return(self, _: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._unroutable.add(message.properties.get("correlation_id", ""))  # its confirmation follows

    def _answered(self, tag: int, multiple: bool) -> list[str]:
        if not multiple:
            return [self._open.pop(tag)] if tag in self._open else []
        tags = []
        for open_tag in self._open:
            if open_tag > tag:
                break
            tags.append(open_tag)
        return [self._open.pop(open_tag) for open_tag in tags]

    def _on_blocked(self, _: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False


def probe_channel(channel: Any, timeout_s: float) -> None:
    """Publish to nobody: RabbitMQ tells only those who publish that it takes no messages.

    Raises:
        Blocked: It takes none.
        Exception: Whatever py-amqp raises.
    """
    confirms = Confirms(channel, set(), timeout_s)
    channel.basic_publish(Message(b""), "", "bridge-probe")
    confirms.wait_for_confirms()

"""Publisher confirms on a channel without RabbitMQ, and the code of py-amqp that they rely on."""

from __future__ import annotations

import hashlib
import inspect
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from amqp import Channel, Message
from kombu.exceptions import OperationalError

from bridge.broker.confirms import Blocked, Confirms


class FakeChannel:
    """The part of a channel and its connection that confirms use: it records what is sent and replies to reads."""

    def __init__(self, sock: socket.socket) -> None:
        self.connection = self.transport = self
        self.sock = sock
        self.client_properties: dict[str, Any] = {}
        self.events: defaultdict[str, set[Callable[..., None]]] = defaultdict(set)
        self.sent: list[tuple[Any, ...]] = []
        #: Each read calls the first of these; without any, it times out.
        self.answers: list[Callable[[], None]] = []
        self.on_blocked: Callable[[str], None]
        self.on_unblocked: Callable[[], None]
        self.basic_publish: Callable[..., Any]

    def confirm_select(self) -> None: ...

    def having_timeout(self, _: float | None) -> nullcontext[None]:
        return nullcontext()

    def send_method(self, *arguments: Any) -> None:
        self.sent.append(arguments)

    def drain_events(self, timeout: float) -> None:
        if not self.answers:
            raise TimeoutError
        self.answers.pop(0)()

    def answer(self, event: str, *arguments: Any) -> None:
        """Let one read receive an event."""

        def call() -> None:
            for receiver in self.events[event]:
                receiver(*arguments)

        self.answers.append(call)


@pytest.fixture
def channel() -> Iterator[FakeChannel]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield FakeChannel(ours)


def message(task_id: str) -> Message:
    return Message(b"x", correlation_id=task_id, expiration="1000")


def publish(channel: FakeChannel, *task_ids: str) -> None:
    for task_id in task_ids:
        channel.basic_publish(message(task_id), exchange="e", routing_key="r", mandatory=False, timeout=3)


def test_py_amqp_publishes_in_the_same_way(channel: FakeChannel) -> None:
    """The confirms replace a method of py-amqp.

    If this fails after an update, compare py-amqp's ``Channel._basic_publish`` with ``Confirms._publish``. Then write
    its new hash here and its new version into the docstring of ``Confirms``.
    """
    source = inspect.getsource(Channel._basic_publish)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == "435fd18a6c885ecc"
    Channel._basic_publish(channel, message("a"), exchange="e", routing_key="r", mandatory=True)
    Confirms(channel, 1.0)
    publish(channel, "a")
    (*theirs, their_message), (*ours, our_message) = channel.sent
    assert ours == theirs
    assert their_message.properties.pop("expiration")
    assert our_message.properties == their_message.properties


def test_confirmed_refused_and_returned(channel: FakeChannel) -> None:
    """One ack can confirm several messages; a returned message is not confirmed, although its ack follows."""
    confirms = Confirms(channel, 1.0)
    publish(channel, "a", "b", "c", "d")
    channel.answer("basic_ack", 2, True)
    channel.answer("basic_return", OperationalError(), "e", "r", message("d"))
    channel.answer("basic_ack", 4, False)
    channel.answer("basic_ack", 3, False)
    assert confirms.wait() == {"d"}
    assert confirms.take_confirmed() == {"a", "b", "c"}
    assert (confirms.wait(), confirms.take_confirmed()) == (set(), set())
    publish(channel, "e", "f")
    channel.answer("basic_ack", 5, False)
    channel.answer("basic_nack", 6, False)
    with pytest.raises(OperationalError, match="refused 1 messages"):
        confirms.wait()
    assert confirms.take_confirmed() == {"e"}


def test_answers_that_do_not_come(channel: FakeChannel) -> None:
    """After a timeout, earlier confirms are known; while the connection is blocked, waiting raises Blocked instead."""
    confirms = Confirms(channel, 1.0)
    publish(channel, "a", "b")
    channel.answer("basic_ack", 1, False)
    with pytest.raises(OperationalError, match="did not confirm 1 messages within 1 s"):
        confirms.wait()
    assert confirms.take_confirmed() == {"a"}
    channel.on_blocked("low on memory")
    with pytest.raises(Blocked):
        confirms.wait()
    with pytest.raises(Blocked):
        publish(channel, "c")
    assert len(channel.sent) == 2
    channel.answers = [channel.on_unblocked]
    channel.answer("basic_ack", 2, False)
    assert confirms.wait() == set()
    assert confirms.take_confirmed() == {"b"}

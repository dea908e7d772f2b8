"""A RabbitMQ for each process of the tests, a virtual host for each test, and what waits there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import amqp
import pytest
from celery import Celery

from bridge import BridgeSettings
from bridge.broker.outbox import Outbox
from tests.conftest import Processes, missing
from tests.rabbitmq.node import RabbitNode, find_programs
from tests.topologies.certificates import Certificates


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the tests of this folder time: each command to RabbitMQ starts an Erlang, slowly on a busy machine."""
    item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="session")
def rabbit_certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def shared_node(rabbit_certificates: Certificates) -> Iterator[RabbitNode]:
    programs = find_programs()
    if programs is None:
        missing("rabbitmq-server")
    with RabbitNode(programs, rabbit_certificates) as running:
        yield running


@pytest.fixture
def node(shared_node: RabbitNode) -> Iterator[RabbitNode]:
    """A RabbitMQ that this test may stop, kill, freeze and alarm: it is well again after the test."""
    yield shared_node
    shared_node.heal()


class Rabbit:
    """The virtual host of one test.

    Arguments:
        node: Where it is.
        name: Of the virtual host; it is made.
    """

    def __init__(self, node: RabbitNode, name: str) -> None:
        self.name = name
        self._port = node.port
        node.evaluate(
            f'rabbit_vhost:add(<<"{name}">>, <<"tests">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"tests">>).'
        )

    @property
    def url(self) -> str:
        return self.url_at(self._port)

    def url_at(self, port: int) -> str:
        """The address by way of another port, that of a proxy."""
        return f"amqp://guest:guest@127.0.0.1:{port}/{self.name}"

    def channel(self) -> Any:
        """Return a channel of a connection of its own; closed by the caller, or with the node."""
        address = f"127.0.0.1:{self._port}"
        connection = amqp.Connection(address, "guest", "guest", virtual_host=self.name, connect_timeout=5)
        connection.connect()
        return connection.channel()

    def do(self, what: Callable[[Any], Any]) -> Any:
        """Return what *what* returns for a channel."""
        channel = self.channel()
        connection = channel.connection
        try:
            return what(channel)
        finally:
            with suppress(amqp.AMQPError, OSError):
                connection.close()

    def length(self, queue: str = "celery") -> int:
        """How many messages are ready in a queue; 0 when there is none, or no node."""
        try:
            return int(self.do(lambda channel: channel.queue_declare(queue, passive=True).message_count))
        except (amqp.AMQPError, OSError):
            return 0

    def is_there(self, queue: str) -> bool:
        """Whether there is such a queue."""
        try:
            self.do(lambda channel: channel.queue_declare(queue, passive=True))
        except amqp.NotFound:
            return False
        return True

    def take(self, queue: str = "celery") -> list[Any]:
        """Take all messages out of a queue."""

        def take_all(channel: Any) -> list[Any]:
            return list(iter(lambda: channel.basic_get(queue, no_ack=True), None))

        return list(self.do(take_all))

    def tasks(self, queue: str = "celery") -> Counter[str]:
        """Take all messages out of a queue; return how often each task was there with each event id."""
        messages = self.take(queue)
        return Counter(
            f"{message.properties['application_headers']['task']} {json.loads(message.body)[0][0]['id']}"
            for message in messages
        )


@pytest.fixture
def rabbit(node: RabbitNode, prefix: str) -> Rabbit:
    return Rabbit(node, prefix.replace(":", "-"))


@pytest.fixture
def rabbit_app(rabbit: Rabbit) -> Iterator[Celery]:
    """A Celery application whose broker is the virtual host of this test."""
    with Celery("tests", broker=rabbit.url, set_as_current=False) as made:
        made.finalize()
        yield made


@pytest.fixture
def outbox(rabbit_app: Celery, settings: BridgeSettings) -> Iterator[Outbox]:
    made = Outbox(rabbit_app, settings)
    yield made
    made.close()


@pytest.fixture
def rabbit_processes(processes: Processes, rabbit: Rabbit) -> Processes:
    """Real processes on the shared Redis, with their broker on the virtual host of this test."""
    processes.environment["CELERY_BROKER_URL"] = rabbit.url
    return processes

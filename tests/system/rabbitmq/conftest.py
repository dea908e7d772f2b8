"""A RabbitMQ for each process of the tests, and a virtual host for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from bridge import BridgeSettings
from bridge.broker.outbox import Outbox
from tests.support.processes import Processes
from tests.support.requirements import missing
from tests.support.servers.certificates import Certificates
from tests.support.servers.rabbitmq import RabbitNode, find_programs
from tests.system.rabbitmq.virtual_host import Rabbit


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
    """A RabbitMQ that this test may stop, kill, freeze and alarm. It is healed after the test."""
    yield shared_node
    shared_node.heal()


@pytest.fixture
def rabbit(node: RabbitNode) -> Rabbit:
    return Rabbit(node)


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
    """Real processes on the shared Redis, with the virtual host of this test as broker."""
    processes.environment["CELERY_BROKER_URL"] = rabbit.url
    return processes

"""Quorum queues: messages reach the queues to which Celery sends them, also with a countdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from celery import Celery
from kombu import Exchange, Queue
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.broker.outbox import Outbox
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.processes import Processes
from tests.support.site import Effects
from tests.support.waiting import eventually
from tests.system.rabbitmq.messages import plain, prepared
from tests.system.rabbitmq.virtual_host import Rabbit

#: Arguments of the declared queue.
QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
def quorum_app(rabbit_app: Celery) -> Iterator[Celery]:
    """An application whose default queue is a quorum queue on a topic exchange, as delayed delivery requires."""
    rabbit_app.conf.task_queues = [
        Queue("celery", Exchange("topics", type="topic"), routing_key="celery", queue_arguments=QUORUM)
    ]
    return rabbit_app


def test_a_plain_quorum_queue(rabbit_app: Celery, settings: BridgeSettings, rabbit: Rabbit) -> None:
    """With task_default_queue_type, the queue is declared as a quorum queue, and its messages are counted."""
    rabbit_app.conf.task_default_queue_type = "quorum"
    outbox = Outbox(rabbit_app, settings)
    assert outbox.send(prepared(outbox, count=100)) == []
    assert outbox.waiting("celery") == rabbit.length() == 100
    rabbit.do(lambda channel: channel.queue_declare("celery", durable=True, auto_delete=False, arguments=QUORUM))
    outbox.close()


def test_a_countdown_waits_in_the_broker(
    quorum_app: Celery, settings: BridgeSettings, rabbit: Rabbit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ delays a message with a countdown, even if no worker has declared the exchanges for this."""
    monkeypatch.setitem(HANDLERS["t.delayed"].send_options, "countdown", 2)
    outbox = Outbox(quorum_app, settings)
    (message,) = prepared(outbox, "t.delayed")
    assert message.route.queue == "celery"
    assert message.ledger_entry.delay_ms == 2000
    assert outbox.send([message]) == []
    assert rabbit.length("celery_delayed_1") + rabbit.length("celery_delayed_0") == 1
    eventually(lambda: rabbit.length() == 1, "it is delivered")
    (ours,) = rabbit.take()
    quorum_app.tasks["t.delayed"].apply_async((message.event.event,), task_id=message.task_id, countdown=2)
    eventually(lambda: rabbit.length() == 1, "Celery's own message is delivered")
    (theirs,) = rabbit.take()
    assert plain(ours) == plain(theirs)
    outbox.close()


def test_delayed_delivery_that_is_there_is_used(quorum_app: Celery, settings: BridgeSettings, rabbit: Rabbit) -> None:
    """A second connection uses the existing exchanges and queues of delayed delivery."""
    for _ in range(2):
        outbox = Outbox(quorum_app, settings)
        assert outbox.send(prepared(outbox, "t.delayed")) == []
        outbox.close()
    assert sum(rabbit.length(f"celery_delayed_{level}") for level in range(28)) == 2


def test_waiting_for_the_bus_uses_up_no_deliveries(
    rabbit_processes: Processes, rabbit: Rabbit, own_server: RedisServer, prefix: str
) -> None:
    """RabbitMQ drops a message after some deliveries; one that waits for the bus is delivered as often as it needs."""
    rabbit.limit_deliveries(1)
    environment = {"BRIDGE_REDIS_URL": own_server.url, "TEST_QUORUM": "1", "BRIDGE_PUBLISH_TIMEOUT_S": "0.1"}
    subscriber = rabbit_processes.celery("bus", "subscribe", name="subscriber", **environment)
    with EventBus(redis_url=own_server.url, channel_prefix=prefix) as bus:
        bus.publish("dream.made", id="x")
    eventually(lambda: rabbit.length() == 1, "the message is queued", 20)
    subscriber.kill()
    own_server.kill()
    rabbit_processes.worker("w1", "--no-subscriber", **environment)
    received = re.compile(r"Task tests\.app\.glob\[[^]]*\] received")
    eventually(lambda: len(received.findall(rabbit_processes.log("w1"))) > 3, "it is delivered more often", 30)
    own_server.start()
    with Redis.from_url(own_server.url) as client:
        Effects(client, prefix).wait_for("glob x")
        assert Effects(client, prefix).all() == {"glob x": 1}

"""RabbitMQ as the broker: messages that the outbox sends are queued, or it reports an error."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from celery import Celery
from celery.signals import before_task_publish
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from benchmarks import rabbitmq as benchmark
from bridge import BridgeSettings
from bridge.broker.outbox import Outbox
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.servers.rabbitmq import RabbitNode
from tests.support.waiting import eventually
from tests.system.rabbitmq.messages import plain, prepared
from tests.system.rabbitmq.virtual_host import Rabbit

ROUTES: dict[str, tuple[str, dict[str, Any], str]] = {
    "default": ("t.plain", {}, "celery"),
    "routed by type": ("t.plain", {"queue": "billing", "priority": 6}, "billing"),
    "decorator wins": ("t.own", {"queue": "billing", "priority": 3}, "own"),
    "limits and priority": ("t.limited", {}, "limited"),
    "countdown": ("t.delayed", {}, "celery"),
    "named exchange": ("t.plain", {"queue": "celery", "exchange": "celery", "routing_key": "celery"}, "celery"),
}


@pytest.mark.parametrize("way", ["published", "by Celery"])
@pytest.mark.parametrize(("name", "options", "queue"), ROUTES.values(), ids=ROUTES)
def test_messages_equal_celerys_own(
    rabbit_app: Celery,
    settings: BridgeSettings,
    rabbit: Rabbit,
    name: str,
    options: dict[str, Any],
    queue: str,
    way: str,
) -> None:
    """A message has the same headers, properties, body and route as one that apply_async sends."""
    outbox = Outbox(rabbit_app, settings.model_copy(update={"routes": {"billing.*": options}}))
    (message,) = prepared(outbox, name)
    assert message.content is not None
    assert outbox.send([message if way == "published" else message._replace(content=None)]) == []
    outbox.close()
    (ours,) = rabbit.take(queue)
    argument = message.event.event
    rabbit_app.tasks[name].apply_async(
        (argument,), task_id=message.task_id, **options | dict(HANDLERS[name].send_options)
    )
    eventually(lambda: rabbit.length(queue) == 1, "Celery's own message is queued")
    (theirs,) = rabbit.take(queue)
    assert plain(ours) == plain(theirs)


def test_a_task_that_expires_ends_at_a_worker(outbox: Outbox, rabbit: Rabbit) -> None:
    """Expired messages are not dropped silently in the queue: RabbitMQ gets no expiration."""
    assert outbox.send(prepared(outbox, "t.expiring")) == []
    (message,) = rabbit.take()
    assert "expiration" not in message.properties
    assert message.properties["application_headers"]["expires"]


@pytest.mark.parametrize("option", [{}, {"confirm_publish": True}, {"confirm_publish": False}], ids=str)
def test_sent_means_confirmed(
    rabbit_app: Celery, settings: BridgeSettings, rabbit: Rabbit, option: dict[str, Any]
) -> None:
    """When send() returns, all messages are queued, with any setting, after one or two round trips in total."""
    rabbit_app.conf.broker_transport_options = option
    outbox = Outbox(rabbit_app, settings)
    before = time.monotonic()
    assert outbox.send(prepared(outbox, count=500)) == []
    took_s = time.monotonic() - before
    assert rabbit.length() == 500
    assert outbox._producer._confirmed == set()
    outbox.close()
    assert took_s < 5, "500 messages, without waiting for each of them"


@pytest.mark.parametrize("lost", ["queue", "binding"])
def test_a_queue_or_binding_that_was_deleted_is_made_anew(
    rabbit_app: Celery, settings: BridgeSettings, rabbit: Rabbit, lost: str
) -> None:
    """A deleted queue or binding is declared again, and the returned messages are sent again at once."""
    rabbit_app.conf.task_queues = [Queue("topical", Exchange("topics", type="topic"), routing_key="topical")]
    rabbit_app.conf.task_default_queue = "topical"
    outbox = Outbox(rabbit_app, settings)
    assert outbox.send(prepared(outbox, count=1)) == []
    assert rabbit.length("topical") == 1
    if lost == "queue":
        rabbit.do(lambda channel: channel.queue_delete("topical"))
    else:
        rabbit.do(lambda channel: channel.queue_unbind("topical", "topics", "topical"))
        rabbit.take("topical")
    messages = prepared(outbox, count=30)
    assert outbox.send(messages) == []
    assert rabbit.tasks("topical") == Counter({f"t.plain e{number}": 1 for number in range(30)})
    outbox.close()


def test_a_route_that_leads_nowhere_stops_no_other(
    rabbit_app: Celery, settings: BridgeSettings, rabbit: Rabbit
) -> None:
    """Messages of a route without a queue are rejected as dead letters; messages of other routes are sent once."""
    nowhere = settings.model_copy(update={"routes": {"*": {"exchange": "void", "routing_key": "x"}}})
    (lost,) = prepared(Outbox(rabbit_app, nowhere))
    outbox = Outbox(rabbit_app, settings)
    (refused,) = outbox.send([*prepared(outbox, "t.own", 2), lost])
    assert (refused.message, rabbit.length("own")) == (lost, 2)
    assert (refused.reason, refused.detail) == ("unroutable", "the broker has no exchange void")
    rabbit.do(lambda channel: channel.exchange_declare("void", "topic", durable=True, auto_delete=False))
    for message in (lost, lost._replace(content=None)):
        rabbit.take("own")
        (refused,) = outbox.send([*prepared(outbox, "t.own", 2), message])
        assert (refused.message, rabbit.length("own")) == (message, 2)
        assert (refused.reason, refused.detail[:31]) == ("unroutable", "the broker has no queue for it:")
    outbox.close()


def test_a_full_queue_holds_back_and_nothing_arrives_twice(
    rabbit_app: Celery, settings: BridgeSettings, rabbit: Rabbit
) -> None:
    """A queue that refuses messages is an outage; messages of the batch that were confirmed are not sent again."""
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    rabbit_app.conf.task_queues = [Queue("celery"), Queue("own", queue_arguments=arguments)]
    outbox = Outbox(rabbit_app, settings)
    messages = prepared(outbox, "t.plain", 20) + prepared(outbox, "t.own", 3)
    held: Counter[str] = Counter()

    def all_sent() -> bool:
        try:
            outbox.send(messages)
        except OperationalError:
            held.update(rabbit.tasks("own"))  # like slow workers
            return False
        return True

    with pytest.raises(OperationalError, match=r"RabbitMQ refused \d messages: a queue is full or not available"):
        outbox.send(messages)
    eventually(all_sent, "there is space for the last one")
    held.update(rabbit.tasks("own"))
    assert held == Counter({f"t.own e{number}": 1 for number in range(3)})
    assert rabbit.tasks() == Counter({f"t.plain e{number}": 1 for number in range(20)})
    outbox.close()


def test_a_queue_declared_otherwise_is_waited_for(outbox: Outbox, rabbit: Rabbit) -> None:
    """A queue that exists with other arguments is an error that names the argument; there are no dead letters."""
    rabbit.do(lambda channel: channel.queue_declare("celery", durable=False, auto_delete=False))
    with pytest.raises(PreconditionFailed, match="durable"):
        outbox.send(prepared(outbox))
    rabbit.do(lambda channel: channel.queue_delete("celery"))
    assert outbox.send(prepared(outbox)) == []
    assert rabbit.length() == 1


def test_celery_sends_when_someone_listens(outbox: Outbox, rabbit: Rabbit) -> None:
    """If a receiver is connected, Celery makes the messages, and they are confirmed in the same batch."""
    seen: list[str] = []

    def receiver(headers: dict[str, Any], **_: Any) -> None:
        seen.append(headers["id"])

    before_task_publish.connect(receiver)
    try:
        outbox.refresh()
        messages = prepared(outbox, count=50)
        assert {message.content for message in messages} == {None}
        assert outbox.send(messages) == []
    finally:
        before_task_publish.disconnect(receiver)
    assert rabbit.length() == 50
    assert seen == [message.task_id for message in messages]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_benchmark_runs(own_server: RedisServer, node: RabbitNode, kind: str) -> None:
    """Both ways of the benchmark send every message."""
    assert benchmark.apply_async(node, kind, 20) > 0
    assert benchmark.dispatch(own_server, node, kind, 1000) > 0


def test_the_length_of_a_queue(outbox: Outbox, rabbit: Rabbit) -> None:
    """The length is the number of queued messages, 0 for a missing queue; sending still works afterwards."""
    assert outbox.waiting("celery") == 0
    assert outbox.send(prepared(outbox, count=7)) == []
    assert outbox.waiting("celery") == 7
    assert outbox.waiting("nowhere") == 0
    assert outbox.send(prepared(outbox)) == []
    assert outbox.waiting("celery") == 8

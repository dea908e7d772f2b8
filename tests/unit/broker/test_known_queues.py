"""The queue of a message as the ledger and back-pressure know it: only if the message reaches that queue."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from bridge import BridgeSettings, Event
from bridge.broker.outbox import Outbox
from bridge.events.encoded import EncodedEvent
from tests.handlers import HANDLERS

EXCHANGE = {"exchange": "named", "routing_key": "key"}
TOPIC = [Queue("celery", Exchange("topics", type="topic"), routing_key="a.b")]
#: Route of the bridge, Celery's configuration, and the queue; empty: unknown.
ROUTES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "the default queue": ({}, {}, "celery"),
    "another queue": ({"queue": "other"}, {}, "other"),
    "a key without an exchange": ({"routing_key": "key"}, {}, "celery"),
    "another exchange": (EXCHANGE, {}, ""),
    "a queue and another exchange": ({"queue": "other", **EXCHANGE}, {}, ""),
    "the exchange of the queue": ({"exchange": "celery", "routing_key": "celery"}, {}, "celery"),
    "a topic exchange": ({}, {"task_queues": TOPIC}, "celery"),
    "a routing function": ({}, {"task_routes": (lambda *_, **__: {"queue": "other"},)}, "other"),
    "a routing function to an exchange": ({}, {"task_routes": (lambda *_, **__: dict(EXCHANGE),)}, ""),
}


@pytest.mark.parametrize(("route", "configuration", "queue"), ROUTES.values(), ids=ROUTES)
def test_which_queue_a_message_reaches(
    app: Celery, settings: BridgeSettings, route: dict[str, Any], configuration: dict[str, Any], queue: str
) -> None:
    """The queue is known unless the route leads to another exchange than that of its queue."""
    app.conf.update(configuration)
    app.finalize()
    outbox = Outbox(app, settings.model_copy(update={"routes": {"*": route}}))
    event = EncodedEvent.read(Event(type="dream.created", id="e").encode())
    message = outbox.prepare(HANDLERS["t.exact"], event, b"1-1")
    assert (message.route.queue, json.loads(message.ledger_entry.in_flight)["queue"]) == (queue, queue)

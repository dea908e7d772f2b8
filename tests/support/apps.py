"""Celery applications for tests, and types of the fixtures that start or invoke something on them."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery
from click.testing import Result

from bridge.subscriber.subscriber import Subscriber

Invoke = Callable[..., Result]


# In-process subscribers: their task messages stay in the queues, where tests inspect them.

StartSubscriber = Callable[..., Subscriber]


def make_app(broker_url: str, prefix: str) -> Celery:
    """Return a Celery application whose queues carry the prefix of the test."""
    app = Celery("tests", broker=broker_url, set_as_current=False)
    app.conf.broker_transport_options = {
        "global_keyprefix": f"broker:{prefix}",
        "socket_timeout": 5.0,
        "socket_connect_timeout": 1.0,
    }
    return app

"""Celery applications of tests, and what is started or invoked on them."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery
from click.testing import Result

from bridge.subscriber.subscriber import Subscriber

Invoke = Callable[..., Result]


# In-process subscribers, whose task messages stay in the queues to be looked at.

StartSubscriber = Callable[..., Subscriber]


def make_app(broker_url: str, prefix: str) -> Celery:
    """Make a Celery application whose queues carry the prefix of the test."""
    app = Celery("tests", broker=broker_url, set_as_current=False)
    app.conf.broker_transport_options = {
        "global_keyprefix": f"broker:{prefix}",
        "socket_timeout": 5.0,
        "socket_connect_timeout": 1.0,
    }
    return app

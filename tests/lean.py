"""An application of the same name, and so of the same group, as ``tests/app.py``, with other handlers or with none."""

from __future__ import annotations

import os

from celery import Celery

import bridge
from bridge import Event, on_event

PREFIX = os.environ.get("BRIDGE_CHANNEL_PREFIX", "test:")

app = Celery("tests")
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL") or os.environ.get("REDIS_URL"),
    broker_transport_options={"global_keyprefix": f"broker:{PREFIX}", "socket_timeout": 10.0},
)
bridge.install(app)

if os.environ.get("TEST_HANDLERS"):

    @on_event("lean.*")
    def lean(event: Event) -> None: ...

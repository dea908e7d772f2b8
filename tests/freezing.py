"""A Celery application whose handlers run while the bus hangs or is away. Their effects are elsewhere."""

from __future__ import annotations

import os
import time

from celery import Celery
from redis import Redis

import bridge
from bridge import Event, EventTask, on_event, publish_event

PREFIX = os.environ.get("BRIDGE_CHANNEL_PREFIX", "test:")

app = Celery("freezing")
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL"),
    broker_transport_options={"global_keyprefix": f"broker:{PREFIX}"},
    task_ignore_result=True,
    bridge_group="freezing",
    worker_hijack_root_logger=False,
)
bridge.install(app)

#: Time limits of the handlers, by name.
LIMITS: dict[str, dict[str, float]] = {"none": {}, "soft": {"soft_time_limit": 2}, "hard": {"time_limit": 2}}


def wait_until_told(event: Event) -> None:
    """Note the run, and wait until the test lets it go on."""
    with Redis.from_url(os.environ["CELERY_BROKER_URL"]) as elsewhere:
        elsewhere.rpush(f"{PREFIX}runs", event.type)
        while not elsewhere.exists(f"{PREFIX}go-on"):
            time.sleep(0.01)


def interrupted(event: Event) -> None:
    wait_until_told(event)
    if not event.type.endswith(".none"):
        time.sleep(30)


def retried(self: EventTask, event: Event) -> None:
    wait_until_told(event)
    if not self.request.retries:
        raise self.retry(countdown=0)


@on_event("publishing.created", name="publishing")
def publishing(event: Event) -> None:
    """Publish while the bus hangs, and note how long that took."""
    wait_until_told(event)
    began = time.monotonic()
    try:
        publish_event("published", id="published")
    finally:
        with Redis.from_url(os.environ["CELERY_BROKER_URL"]) as elsewhere:
            elsewhere.rpush(f"{PREFIX}took", time.monotonic() - began)


for _limit, _options in LIMITS.items():
    on_event(f"waiting.{_limit}", name=f"waiting.{_limit}", **_options)(wait_until_told)
    on_event(f"retried.{_limit}", name=f"retried.{_limit}", bind=True, **_options)(retried)
    on_event(f"interrupted.{_limit}", name=f"interrupted.{_limit}", **_options)(interrupted)

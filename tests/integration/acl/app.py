"""An application whose tasks send every command to Redis that tasks of events may send, and no others."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, chord, group

import bridge
from bridge import Event, effect_transaction, get_bus, on_event, publish_event
from bridge.storage import Ended

PREFIX = os.environ.get("BRIDGE_CHANNEL_PREFIX", "test:")

app = Celery("tests")
app.conf.update(
    broker_url=os.environ.get("REDIS_URL"),
    result_backend=os.environ.get("REDIS_URL"),
    broker_transport_options={"global_keyprefix": f"broker:{PREFIX}", "socket_timeout": 10.0},
    result_backend_transport_options={"global_keyprefix": f"broker:{PREFIX}"},
    worker_send_task_events=True,
    task_track_started=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
bridge.install(app)


@app.task
def one() -> int:
    return 1


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@on_event("work.published")
def publishes(event: Event) -> None:
    assert get_bus().get_event(event.id)
    assert get_bus().get_event("work.long"), "its key holds something else, so it is read from the journal"
    publish_event("work.told")
    causes = (event, Event(type="work.published", id="work.other"))
    get_bus().publish_many([cause.child("work.told") for cause in causes])


@on_event("work.retried", bind=True, max_retries=1, default_retry_delay=0)
def retries(self: bridge.EventTask, event: Event) -> None:
    raise self.retry(exc=RuntimeError("as intended"))


@on_event("work.long")
def takes_long(event: Event) -> None:
    time.sleep(1)


@on_event("work.marked", bind=True)
def marks(self: bridge.EventTask, event: Event) -> None:
    with effect_transaction():
        pass
    bus = get_bus()
    with bus.client.pipeline() as pipe:  # like another copy of the task
        assert not bus.storage.ledger.end_first(str(self.request.id), Ended(), pipe)


@on_event("work.canvas")
def canvas(event: Event) -> Any:
    group([one.si()])().save()
    one.delay()
    late = [app.backend.get_key_for_group("late", part) for part in (".c", ".s")]
    app.backend._chord_claim_extend_script(keys=late, args=["token", 10])  # like a callback that takes long to send
    return str(chord([one.si(), one.si()], total.s()).delay().id)

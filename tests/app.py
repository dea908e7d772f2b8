"""The Celery application of a user who has installed the bridge. The workers of the tests run it.

Each effect of a handler is one RPUSH to a list in Redis, so a repeated effect is visible. Queues and results carry the
prefix of the test, so tests can run in parallel on one server.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from celery import Celery
from celery.exceptions import Reject
from pydantic import BaseModel

import bridge
from bridge import Event, current_event, effect_transaction, get_bus, on_event, publish_event

PREFIX = os.environ.get("BRIDGE_CHANNEL_PREFIX", "test:")
VISIBILITY_TIMEOUT_S = float(os.environ.get("TEST_VISIBILITY_TIMEOUT_S", "3600"))
#: In a Redis Cluster, this key must be in the same slot as the bridge's own keys.
EFFECTS = os.environ.get("TEST_EFFECTS", f"{PREFIX}effects")

app = Celery("tests")
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL") or os.environ.get("REDIS_URL"),
    result_backend=os.environ.get("REDIS_URL"),
    broker_transport_options={
        "global_keyprefix": f"broker:{PREFIX}",
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "socket_timeout": 10.0,
    },
    result_backend_transport_options={"global_keyprefix": f"broker:{PREFIX}"},
    worker_send_task_events=True,
    task_track_started=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    bridge_redis_url="redis://:conf-s3cret@unused",  # overridden by REDIS_URL; must never be shown
    bridge_routes={"routed.*": {"queue": "routed"}},
)
if os.environ.get("TEST_QUORUM"):  # RabbitMQ itself delays the messages of these exchanges
    app.conf.update(task_default_queue_type="quorum", task_default_exchange_type="topic")
    app.conf.update(task_create_missing_queue_type="quorum", task_create_missing_queue_exchange_type="topic")
bridge.install(app)


def effect(name: str, value: str) -> None:
    """Append an effect to the list; repetitions are visible."""
    get_bus().client.rpush(EFFECTS, f"{name} {value}")


class DreamCreated(BaseModel):
    dreamId: int  # noqa: N815  # the wire's name


@on_event("dream.created")
def plain(event: Event) -> None:
    effect("plain", event.id)


@on_event("dream.*")
def glob(event: Event) -> None:
    effect("glob", event.id)


@on_event("typed.created")
def typed(event: Event[DreamCreated]) -> None:
    effect("typed", str(event.payload.dreamId + 1))


@on_event("bound.created", bind=True, max_retries=2, default_retry_delay=0)
def bound(self: bridge.EventTask, event: Event) -> None:
    """Publish, fail, and publish the same event again in each retry."""
    publish_event("bound.step", {"retries": "any"})
    effect("bound", str(self.request.retries))
    if self.request.retries < 2:
        raise self.retry()


@on_event("bound.step")
def step(event: Event) -> None:
    effect("step", event.id)


@on_event("failing.created")
def failing(event: Event) -> None:
    raise RuntimeError("as intended")


@on_event("chosen.*", where=lambda event: event.payload["yes"])
def chosen(event: Event) -> None:
    effect("chosen", event.id)


@on_event("routed.created", "own.created")
def routed(event: Event) -> None:
    effect("routed", str(routed.request.delivery_info["routing_key"]))


@on_event("routed.elsewhere", queue="elsewhere")
def elsewhere(event: Event) -> None:
    effect("elsewhere", str(elsewhere.request.delivery_info["routing_key"]))


@app.task
def subtask(depth: int) -> None:
    """An ordinary task, which publishes two levels below the handler."""
    if depth:
        subtask.delay(depth - 1)
    else:
        publish_event("sub.published")


@on_event("sub.created")
def starts_subtasks(event: Event) -> None:
    subtask.delay(1)
    (subtask.si(0) | subtask.si(0)).delay()


@on_event("sub.published")
def after_subtasks(event: Event) -> None:
    effect("sub", f"{event.correlation_id} {event.metadata}")


@on_event("loop.again")
def loop(event: Event) -> None:
    effect("loop", str(event.hops))
    publish_event("loop.again")


@on_event("loop.thread")
def loop_in_threads(event: Event) -> None:
    effect("loop", str(event.hops))
    thread = threading.Thread(target=publish_event, args=("loop.thread",))
    thread.start()
    thread.join()


@on_event("deep.created")
def deep(event: Event) -> None:
    """Call itself as a plain function; every level publishes an event."""
    if event.payload:
        deep(event.child(event.type, event.payload - 1))
    publish_event("deep.published", event.payload)


@on_event("deep.published")
def after_deep(event: Event) -> None:
    effect("deep", str(event.payload))


@on_event("early.created", acks_late=False)
def early(event: Event) -> None:
    effect("early", event.id)


@on_event("slow.created")
def slow(event: Event) -> None:
    time.sleep(float(event.payload))
    current = current_event()
    effect("slow", current.id if current else "none")


@on_event("deadly.created")
def deadly(event: Event) -> None:
    effect("deadly", event.id)
    os.kill(os.getpid(), signal.SIGKILL)


@on_event("retry.created", bind=True, max_retries=3, default_retry_delay=0)
def retrying(self: bridge.EventTask, event: Event) -> None:
    """Fail permanently after the last retry."""
    effect("retry", str(self.request.retries))
    raise self.retry(exc=RuntimeError("as intended"))


@on_event("patient.created", bind=True, max_retries=5)
def patient(self: bridge.EventTask, event: Event) -> None:
    """Record each run and work for a while; have the effect in the last try, and until then retry after a delay."""
    effect("run", str(self.request.retries))
    time.sleep(event.payload["work_s"])
    if self.request.retries < event.payload["retries"]:
        raise self.retry(countdown=event.payload["delay_s"])
    effect("patient", event.id)


@on_event("repeatable.created", idempotent=False)
def repeatable(event: Event) -> None:
    effect("repeatable", event.id)


@on_event("booked.created")
def booked(event: Event) -> None:
    """Kill the worker right after the effect, whose transaction also writes the done mark."""
    with effect_transaction() as pipe:
        pipe.rpush(EFFECTS, f"booked {event.id}")
    os.kill(os.getpid(), signal.SIGKILL)


@on_event("rejected.created")
def rejected(event: Event) -> None:
    raise Reject("not today", requeue=False)


@on_event("expiring.created", expires=0.001)
def expiring(event: Event) -> None:
    effect("expiring", event.id)


@on_event("delayed.created", countdown=1)
def delayed(event: Event) -> None:
    effect("delayed", event.id)


@on_event("limited.created", time_limit=1)
def limited(event: Event) -> None:
    effect("limited", event.id)
    time.sleep(60)


@on_event("fixable.created")
def fixable(event: Event) -> None:
    """Fail until the cause is fixed: until the test sets a key."""
    if not get_bus().client.exists(f"{PREFIX}cause-gone"):
        raise RuntimeError("as intended")
    effect("fixable", f"{event.id} {fixable.request.id} {event.metadata}")


@on_event("opaque.created")
def opaque(event: Event) -> object:
    """Return a value that no result backend can store."""
    effect("opaque", event.id)
    return object()


@app.task
def follow(result: object, event_id: str) -> None:
    effect("follow", event_id)

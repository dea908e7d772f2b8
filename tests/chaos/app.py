"""The Celery application of ``make chaos``: handlers of every kind, whose effects are counted by an oracle.

The oracle is a Redis that is exempt from faults. Its list ``runs`` contains each effect, ``deliveries`` each message
that reached a pool. The handlers show the ways to have exactly one effect, and what happens without them.

With CHAOS_GROUP it is another application on the same bus, with the same handlers and its own records.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery
from celery.signals import task_prerun
from redis import Redis
from redis.exceptions import RedisError

import bridge
from bridge import BusUnavailable, Event, effect_transaction, on_event, publish_event

PREFIX = os.environ.get("BRIDGE_CHANNEL_PREFIX", "chaos:")
#: The two applications.
GROUP, NEIGHBOUR = "chaos", "neighbour"


def of_group(key: str, group: str) -> str:
    """Return the name of a key that each application has for itself."""
    return key if group == GROUP else f"{key}:{group}"


def broker_prefix(group: str) -> str:
    return f"broker:{PREFIX}" if group == GROUP else f"broker:{PREFIX}{group}:"


def effects_key(group: str) -> str:
    """Return the key of the effects of the handlers that use the Redis of the bus."""
    return of_group(f"{PREFIX}effects", group)


#: The application that this process is.
OWN = os.environ.get("CHAOS_GROUP", GROUP)

app = Celery(OWN)
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL", "redis://"),
    broker_transport_options={
        "global_keyprefix": broker_prefix(OWN),
        "socket_timeout": 5.0,
        "socket_connect_timeout": 2.0,
        "visibility_timeout": 5.0,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,  # a worker that is cut off while restoring messages blocks the others for this time
    },
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=10,
    worker_hijack_root_logger=False,
)
bridge.install(app)

#: Options of a handler that requires the bus, for the time in which it is down.
PATIENT: dict[str, Any] = {
    "autoretry_for": (RedisError, BusUnavailable),
    "max_retries": None,
    "retry_backoff": 1,
    "retry_backoff_max": 4,
}

_oracles: dict[int, Redis] = {}


def oracle() -> Redis:
    """Return this process's client of the oracle."""
    pid = os.getpid()
    if pid not in _oracles:
        _oracles[pid] = Redis.from_url(os.environ["CHAOS_ORACLE_URL"])
    return _oracles[pid]


@task_prerun.connect
def note_delivery(task: Any, task_id: str, **_: Any) -> None:
    if not task.request.retries:
        oracle().rpush(of_group("deliveries", OWN), task_id)


def run(handler: str, event_id: str) -> None:
    oracle().rpush(of_group("runs", OWN), f"{handler} {event_id}")


#: Stores the effect together with the task id as a unique key, like a transaction of a database.
_ONCE = "if redis.call('HSETNX', 'keys', ARGV[1], 1) == 1 then redis.call('RPUSH', KEYS[1], ARGV[2]) end"


def run_once(handler: str, event_id: str, task_id: str) -> None:
    oracle().eval(_ONCE, 1, of_group("runs", OWN), task_id, f"{handler} {event_id}")


@on_event("chaos.bare", name="bare")
def bare(event: Event) -> None:
    """A handler without precautions: it is repeated if its worker crashes between effect and done mark."""
    run("bare", event.id)


@on_event("chaos.guarded", name="guarded", bind=True)
def guarded(self: bridge.EventTask, event: Event) -> None:
    run_once("guarded", event.id, str(self.request.id))


@on_event("chaos.guarded", name="witness")
def witness(event: Event) -> None:
    """A second handler of the same events."""
    run("witness", event.id)


def run_with_mark(handler: str, event_id: str) -> None:
    with effect_transaction() as pipe:
        pipe.rpush(effects_key(OWN), f"{handler} {event_id}")


@on_event("chaos.transactional", name="transactional", **PATIENT)
def transactional(event: Event) -> None:
    run_with_mark("transactional", event.id)


@on_event("chaos.considered", name="considered", **PATIENT)
def considered(event: Event) -> None:
    """A handler that waits *payload* seconds before its effect; if it is frozen then, another copy runs first."""
    time.sleep(event.payload or 0.1)
    run_with_mark("considered", event.id)


@on_event("chaos.chained", name="chained", **PATIENT)
def chained(event: Event) -> None:
    publish_event("chaos.link", {"of": event.id})


@on_event("chaos.link", name="link", bind=True, where=lambda event: event.source == OWN)
def link(self: bridge.EventTask, event: Event) -> None:
    run_once("link", event.payload["of"], str(self.request.id))


@on_event("chaos.retrying", name="retrying", bind=True, default_retry_delay=0.2)
def retrying(self: bridge.EventTask, event: Event) -> None:
    time.sleep(event.payload or 0)
    if self.request.retries < 2:
        raise self.retry()
    run_once("retrying", event.id, str(self.request.id))


@on_event("chaos.slow", name="slow", bind=True)
def slow(self: bridge.EventTask, event: Event) -> None:
    time.sleep(1)
    run_once("slow", event.id, str(self.request.id))


@on_event("chaos.failing", name="failing")
def failing(event: Event) -> None:
    raise RuntimeError("as intended")

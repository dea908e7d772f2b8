"""Signatures of events that a task publishes in a worker."""

from __future__ import annotations

import json

from redis import Redis

from bridge import BridgeSettings, EventBus
from tests.support.outside import SECRETS
from tests.support.processes import Processes
from tests.support.waiting import eventually


def bus_with(settings: BridgeSettings, **changes: object) -> EventBus:
    return EventBus(redis_url=settings.url, channel_prefix=settings.channel_prefix, source="tests", **changes)


def test_a_task_signs_what_it_publishes(processes: Processes, settings: BridgeSettings, client: Redis, prefix) -> None:
    """In a worker whose bus requires signatures of all types, a chain of handlers runs; no secret is in its log."""
    secrets = {key_id: secret.get_secret_value() for key_id, secret in SECRETS.items()}
    processes.environment |= {"BRIDGE_SIGNING_KEYS": json.dumps(secrets), "BRIDGE_REQUIRE_SIGNATURE": '["*"]'}
    processes.worker()
    with bus_with(settings, signing_keys=SECRETS) as bus:
        bus.publish("sub.created", id="first")
    processes.celery("bus", "publish", "dream.created", '{"dreamId": 7}', "--id", "by-hand", name="publish")
    effects = lambda: [line.decode() for line in client.lrange(f"{prefix}effects", 0, -1)]  # noqa: E731
    eventually(lambda: len(effects()) == 5, "there are three effects of the chain and two of the command", timeout_s=30)
    assert sorted(line.split()[0] for line in effects()) == ["glob", "plain", "sub", "sub", "sub"]
    assert not any(secret in processes.log(name) for secret in secrets.values() for name in ("w1", "publish"))

"""Retries in real workers: whatever the broker delivers again, each try runs once, and the task has one effect."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections import Counter

import pytest
from redis import Redis

from bridge import EventBus
from bridge.events.clock import now_ms
from bridge.handlers.delivery import SENT_HEADER
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.support.site import Site
from tests.support.waiting import eventually


def deliver_again(site: Site, times: int = 1) -> None:
    """Queue copies of the messages that workers have taken, as a broker does after its visibility timeout."""
    for message in site.taken() * times:
        message["properties"]["delivery_tag"] = str(uuid.uuid4())
        site.client.lpush(f"broker:{site.prefix}celery", json.dumps(message))


def waits_for(site: Site, retries: int) -> bool:
    """Return whether a worker has the retry of this number and waits until it is due."""
    headers = [message["headers"] for message in site.taken()]
    return any(header["eta"] and header["retries"] == retries for header in headers)


@pytest.mark.parametrize("phase", ["first run", "waiting", "second run"])
def test_cut_connections_to_the_broker_do_not_repeat_a_try(
    site: Site, bus: EventBus, own_server: RedisServer, phase: str
) -> None:
    """When the broker's connections are cut and Celery restores the message, the tries run once, one at a time."""
    worker = site.worker("w1", CELERY_BROKER_URL=own_server.url)
    bus.publish("patient.created", {"work_s": 1.5, "retries": 1, "delay_s": 3}, id="e")
    run = "run 1" if phase == "second run" else "run 0"
    eventually(lambda: site.effects()[run], f"{run} has started", 40)
    with Redis.from_url(own_server.url) as broker:
        if phase == "waiting":
            unacked = f"broker:{site.prefix}unacked"
            eventually(lambda: b'"retries": 1' in b"".join(broker.hvals(unacked)), "the worker waits for the retry")
        assert broker.client_kill_filter(_type="normal", skipme=True) > 0
    eventually(lambda: site.effects()["patient e"], "the task has had its effect", 40)
    eventually(lambda: site.ledger.size() == 0, "the task has ended")
    with Redis.from_url(own_server.url) as broker:
        eventually(lambda: not broker.hlen(f"broker:{site.prefix}unacked"), "every copy has been acknowledged", 40)
    assert "Restoring 1 unacknowledged message(s)" in site.processes.log("w1") or phase == "waiting"
    assert site.effects() == {"run 0": 1, "run 1": 1, "patient e": 1}
    assert worker.poll() is None


def test_copies_of_waiting_retries_are_not_further_tries(site: Site, bus: EventBus) -> None:
    """A retry that waits for longer than the visibility timeout is delivered several times, and runs once."""
    site.worker("w1")
    site.worker("w2", "--no-subscriber")
    bus.publish("patient.created", {"work_s": 0.2, "retries": 3, "delay_s": 1.5}, id="e")
    sent: set[str] = set()
    for number in range(1, 4):
        eventually(lambda retries=number: waits_for(site, retries), f"retry {number} waits")
        sent |= {message["headers"][SENT_HEADER] for message in site.taken()}
        deliver_again(site, 2)
        eventually(lambda: not site.queues.length(), "the workers have the copies")
    eventually(lambda: site.effects()["patient e"], "the task has had its effect")
    eventually(site.nothing_left, "every copy has been acknowledged", 40)
    assert len(sent) == 1, "each retry and each copy has the time of the first message"
    assert site.effects() == Counter({"patient e": 1} | {f"run {number}": 1 for number in range(4)})
    assert not site.letters.latest(1)


def test_a_lost_retry_comes_again_with_its_number(site: Site, bus: EventBus, client: Redis) -> None:
    """A retry that the broker loses is sent again, as the try that is due, and not as the first one."""
    worker = site.worker("w1")
    bus.publish("patient.created", {"work_s": 0, "retries": 1, "delay_s": 2}, id="e")
    eventually(lambda: waits_for(site, 1), "the retry waits")
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert client.delete(f"broker:{site.prefix}unacked", f"broker:{site.prefix}unacked_index") == 2
    site.worker("w2")
    eventually(lambda: site.effects()["patient e"], "the task has had its effect", 40)
    eventually(site.nothing_left, "the task has ended")
    assert site.effects() == {"run 0": 1, "run 1": 1, "patient e": 1}
    assert "tasks neither ran nor seemed to wait" in site.processes.log("w2")


def test_a_message_older_than_the_marks_becomes_a_dead_letter(site: Site, bus: EventBus, client: Redis) -> None:
    """A message whose done mark may have expired does not run; its dead letter has the event."""
    dispatcher = site.processes.celery("bus", "subscribe", name="subscribe")
    bus.publish("slow.created", 0, id="e")
    (message,) = eventually(site.queues.messages, "the message is queued")
    dispatcher.terminate()
    assert abs(int(message["headers"][SENT_HEADER]) - now_ms()) < 60_000
    site.worker("w1", "--no-subscriber")
    eventually(site.nothing_left, "the task has ended")
    task_id = message["headers"]["id"]
    assert client.delete(Keys(site.prefix).done(task_id)) == 1  # as when it expires
    message["headers"][SENT_HEADER] = str(now_ms() - bus.settings.dedup_ttl_ms - 60_000)
    client.lpush(f"broker:{site.prefix}celery", json.dumps(message))
    letter = site.letter()
    assert (letter.reason, letter.task_id, letter.event_id) == ("stale_message", task_id, "e")
    eventually(site.nothing_left, "the message has been acknowledged")
    assert site.effects() == {"slow e": 1}

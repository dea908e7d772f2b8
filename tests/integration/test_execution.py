"""Runs of tasks in real workers: each task runs once despite crashes, never in two copies at a time, and ends."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest
from celery import Celery

from bridge import Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.testing.redis_server import RedisServer
from tests.support.site import FAST, Site
from tests.support.waiting import eventually


def children(worker: Any) -> list[int]:
    return [child.pid for child in psutil.Process(worker.pid).children()]


def test_a_pool_child_killed_in_its_task_is_replaced(site: Site, bus: EventBus) -> None:
    """The task of a killed pool process is delivered again at once, waits for the old lease, and has one effect."""
    worker = site.worker("w1", "-c", "1")
    bus.publish("slow.created", 1, id="e")
    eventually(lambda: site.client.exists(site.lease("e", "slow")), "the task runs")
    (child,) = children(worker)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: site.effects()["slow e"], "the second run has had its effect")
    eventually(site.nothing_left, "no task is left")
    assert site.effects() == {"slow e": 1}
    assert "WorkerLostError" in site.processes.log("w1")


def test_a_task_that_kills_its_worker_ends_as_a_dead_letter(site: Site, bus: EventBus) -> None:
    """After max_redispatches crashes, the task runs no more; other events of the same worker are not blocked."""
    site.worker()
    bus.publish("deadly.created", id="e")
    bus.publish("dream.created", id="other")
    letter = site.letter()
    assert (letter.reason, letter.handler, letter.event_id) == ("worker_lost", "tests.app.deadly", "e")
    assert "crashed 3 times" in letter.detail
    eventually(site.nothing_left, "no task is left")
    assert site.effects() == {"deadly e": 3, "plain other": 1, "glob other": 1}


def test_two_copies_do_not_run_at_once(site: Site, bus: EventBus) -> None:
    """While a task runs for three times its lease, a second copy of its message waits; then it is skipped."""
    one_each = ("-c", "1", "--prefetch-multiplier", "1")  # the worker that runs the task takes no second message
    site.worker("w1", *one_each)
    site.worker("w2", *one_each, "--no-subscriber")
    eventually(lambda: all("ready." in site.processes.log(name) for name in ("w1", "w2")), "both wait for messages")
    bus.publish("slow.created", 3.5, id="e")
    eventually(lambda: site.client.exists(site.lease("e", "slow")), "the task runs")
    site.deliver_again()
    eventually(lambda: any(message["headers"]["eta"] for message in site.taken()), "the copy waits for a later time")
    eventually(site.nothing_left, "both have ended")
    assert site.effects() == {"slow e": 1}
    assert not site.letters.latest(1)


def test_opting_out_of_idempotence(site: Site, bus: EventBus) -> None:
    """With idempotent=False, a message that is delivered twice has two effects."""
    bus.publish("repeatable.created", id="e")
    dispatcher = site.processes.celery("bus", "subscribe", name="subscribe")
    eventually(lambda: site.queues.length() == 1, "the message is queued")
    dispatcher.terminate()
    site.client.lpush(f"broker:{site.prefix}celery", *site.client.lrange(f"broker:{site.prefix}celery", 0, -1))
    site.worker("w1", "--no-subscriber")
    eventually(lambda: site.effects()["repeatable e"] == 2, "both copies have run")
    eventually(site.nothing_left, "no task is left")


def test_a_retry_does_not_wait_for_its_own_lease(site: Site, bus: EventBus) -> None:
    """Retries follow at once; the dead letter after the last one has the traceback, the attempts and the task id."""
    site.worker("w1", BRIDGE_LEASE_S="3600")
    bus.publish("retry.created", id="e")
    letter = site.letter()
    assert (letter.reason, letter.detail, letter.attempts) == ("failure", "RuntimeError: as intended", 4)
    assert letter.task_id == task_id_for("tests", "e", "tests.app.retrying")
    assert "in retrying" in letter.traceback
    assert "RuntimeError: as intended" in letter.traceback
    eventually(site.nothing_left, "no task is left")
    assert site.effects() == {f"retry {number}": 1 for number in range(4)}


def test_an_effect_in_the_transaction_of_its_done_mark_is_not_repeated(site: Site, bus: EventBus) -> None:
    """If a handler is killed after its effect transaction, the effect exists and the redelivered message is skipped."""
    site.worker("w1", "-c", "1")
    bus.publish("booked.created", id="e")
    eventually(lambda: "WorkerLostError" in site.processes.log("w1"), "the pool process has been lost")
    eventually(site.nothing_left, "no task is left")
    assert site.effects() == {"booked e": 1}
    assert not site.letters.latest(1)


@pytest.mark.parametrize(
    ("event_type", "reason", "handler"),
    [
        ("rejected.created", "rejected", "rejected"),
        ("expiring.created", "expired", "expiring"),
        ("limited.created", "failure", "limited"),
    ],
)
def test_every_end_without_success_is_a_dead_letter(
    site: Site, bus: EventBus, event_type: str, reason: str, handler: str
) -> None:
    """A task that is rejected, expires, or exceeds its hard time limit leaves a dead letter and an empty ledger."""
    site.worker()
    bus.publish(event_type, id="e")
    letter = site.letter()
    assert (letter.reason, letter.handler, letter.event_id) == (reason, f"tests.app.{handler}", "e")
    eventually(site.nothing_left, "no task is left")


def test_tasks_run_while_the_result_backend_is_away(site: Site, bus: EventBus, own_server: RedisServer) -> None:
    """Tasks do not need the result backend: while it is down, each task has its effect once and ends."""
    own_server.kill()
    addresses = {
        "BRIDGE_REDIS_URL": bus.settings.url,
        "CELERY_BROKER_URL": bus.settings.url,
        "REDIS_URL": own_server.url,
    }
    site.worker("w1", **addresses)
    bus.publish("dream.created", id="e")
    eventually(lambda: site.ledger.size() == 0 and site.effects().total() == 2, "both handlers have run and ended", 40)
    assert site.effects() == {"plain e": 1, "glob e": 1}
    eventually(lambda: "Connection refused" in site.processes.log("w1"), "Celery cannot store the results")
    assert not site.letters.latest(1)


def test_a_result_that_cannot_be_stored_is_no_failure(site: Site, bus: EventBus) -> None:
    """A result that cannot be stored causes no dead letter, because a replay would repeat the effect."""
    site.worker()
    bus.publish("opaque.created", id="e")
    eventually(
        lambda: "completed, but a later step failed" in site.processes.log("w1"), "Celery cannot store the result"
    )
    eventually(site.nothing_left, "no task is left")
    assert (site.effects(), site.letters.latest(1)) == ({"opaque e": 1}, [])


def test_a_handler_in_a_chain_ends_when_the_chain_goes_on(site: Site, bus: EventBus) -> None:
    """The next task of a chain is sent before the end of the handler is recorded, so a crash in between repeats it."""
    site.worker()
    event = Event(type="dream.created", id="e").to_dict()
    with Celery("sender", broker=bus.settings.url, set_as_current=False) as sender:
        sender.conf.broker_transport_options = {"global_keyprefix": f"broker:{site.prefix}"}
        first = sender.signature("tests.app.plain", args=(event,), task_id="t1")
        (first | sender.signature("tests.app.follow", args=("e",))).delay()
        eventually(lambda: site.effects() == {"plain e": 1, "follow e": 1}, "both tasks have run")
    eventually(lambda: site.ledger.has_ended("t1"), "the end of the first task is recorded")


def test_a_revoked_task_is_not_sent_again(site: Site, bus: EventBus) -> None:
    """A task that an operator terminates becomes a dead letter and is not sent again."""
    worker = site.worker("w1", "-c", "1")
    bus.publish("slow.created", 60, id="e")
    eventually(lambda: site.client.exists(site.lease("e", "slow")), "the task runs")
    task_id = task_id_for("tests", "e", "tests.app.slow")
    site.processes.celery("control", "terminate", "SIGKILL", task_id, name="control")
    letter = site.letter()
    assert (letter.reason, letter.handler) == ("revoked", "tests.app.slow")
    eventually(site.nothing_left, "no task is left")
    assert worker.poll() is None


def test_a_message_lost_between_the_broker_and_the_worker_comes_again(site: Site, bus: EventBus) -> None:
    """If a worker is killed after Redis has returned a message and before that is recorded, the task still runs."""
    subscriber = site.processes.celery("bus", "subscribe", name="subscribe", **FAST)
    victim = site.worker("victim", "--no-subscriber", "-c", "1")
    eventually(lambda: "ready." in site.processes.log("victim"), "the worker waits for messages")
    bus.publish("dream.created", id="first")
    eventually(lambda: site.effects() == {"plain first": 1, "glob first": 1}, "it runs tasks")
    eventually(site.nothing_left, "they have ended")
    site.wait_for_request()
    os.kill(victim.pid, signal.SIGSTOP)  # a message that Redis returns now is lost
    bus.publish("slow.created", 0, id="e")
    eventually(lambda: site.ledger.size() == 1 and site.queues.length() == 0, "Redis has returned it")
    assert site.client.hlen(f"broker:{site.prefix}unacked") == 0
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not site.effects()["slow e"]
    site.worker("w2", "--no-subscriber")
    eventually(lambda: site.effects()["slow e"], "the task runs", 15)
    assert subscriber.poll() is None
    eventually(site.nothing_left, "no task is left")
    assert site.effects()["slow e"] == 1

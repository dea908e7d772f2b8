"""States of tasks from the ledger, its dead letters and the result backend."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.operations.task_states import TaskStates
from bridge.operations.trace import Tracer
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import Delivery, Ended
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.proxy import Proxy
from tests.support.scrape import RoundTrips
from tests.support.trees import tasks, trees
from tests.support.waiting import eventually

HERE = "tests.chains"


@pytest.fixture
def state(user_app: Celery, client: Redis, settings: BridgeSettings) -> Callable[[], str]:
    """A function that returns the state of the only task of event "e"."""

    def read() -> str:
        ((task,),) = TaskStates(user_app, Storage(client, settings)).states([("e", "plain.made")])
        return task.state

    return read


def test_states_of_a_task_from_the_journal_to_its_end(
    user_app: Celery,
    bus: EventBus,
    client: Redis,
    start_subscriber: StartSubscriber,
    state: Callable[[], str],
    settings: BridgeSettings,
) -> None:
    """A task is WAITING in the journal, SENT in the queue, STARTED in a run, RETRY before a retry, then SUCCESS."""
    ledger, task_id = Storage(client, settings).ledger, task_id_for("tests", "e", f"{HERE}.plain")
    bus.publish("plain.made", id="e")
    assert state() == "WAITING"
    client.xgroup_create(Keys(settings.channel_prefix).journal, "tests", id="0")
    client.xreadgroup("tests", "dead", {Keys(settings.channel_prefix).journal: ">"})
    assert state() == "WAITING", "a consumer has read the entry, but not acknowledged it"
    start_subscriber(app=user_app, claim_idle_s=0.01, maintenance_interval_s=0.05)
    eventually(lambda: state() == "SENT", "the task is queued")
    ledger.start_run(task_id, "run", idempotent=True)
    assert state() == "STARTED"
    ledger.release(task_id, "run", 60_000, retries=1)
    assert state() == "RETRY"
    ledger.start_run(task_id, "again", idempotent=True, delivery=Delivery(1))
    assert state() == "STARTED"
    ledger.end(task_id, Ended(runtime_ms=250, queue="plain"))
    assert state() == "SUCCESS"
    ((task,),) = TaskStates(user_app, Storage(client, settings)).states([("e", "plain.made")])
    assert (task.runtime_s, task.queue, task.detail) == (0.25, "plain", "")


def test_a_run_whose_worker_died_is_not_started(
    user_app: Celery,
    bus: EventBus,
    client: Redis,
    start_subscriber: StartSubscriber,
    state: Callable[[], str],
    settings: BridgeSettings,
) -> None:
    """When the lease of a run has expired, its task is SENT again."""
    bus.publish("plain.made", id="e")
    start_subscriber(app=user_app)
    eventually(lambda: state() == "SENT", "the task is queued")
    short = settings.model_copy(update={"lease_s": 0.2})
    Storage(client, short).ledger.start_run(task_id_for("tests", "e", f"{HERE}.plain"), "run", idempotent=True)
    assert state() == "STARTED"
    eventually(lambda: state() == "SENT", "the lease has expired", 5)


def test_failures_and_what_they_say(
    user_app: Celery, bus: EventBus, client: Redis, start_subscriber: StartSubscriber, settings: BridgeSettings
) -> None:
    """FAILURE comes with reason and text, and with the id of the dead letter while that exists."""
    event = bus.publish("plain.made", id="e").event
    start_subscriber(app=user_app)
    letters, outcomes = Storage(client, settings).dead_letters, TaskStates(user_app, Storage(client, settings))
    task_id = task_id_for("tests", "e", f"{HERE}.plain")
    letter = DeadLetter.of_event("worker_lost", "it died", event, event.encode(), f"{HERE}.plain", task_id)
    eventually(lambda: client.zcard(Keys(settings.channel_prefix).inflight("tests")), "the task is sent")
    letters.end_task_with(letter, Ended(runtime_ms=-1, queue="plain"))
    ((task,),) = outcomes.states([("e", "plain.made")])
    (kept,) = letters.latest(1)
    assert (task.state, task.detail, task.dead_letter_id) == ("FAILURE", "worker_lost: it died", kept.dead_letter_id)
    assert (task.runtime_s, task.queue) == (None, "plain")
    letters.drop([kept.dead_letter_id])
    ((task,),) = outcomes.states([("e", "plain.made")])
    assert (task.state, task.dead_letter_id) == ("FAILURE", "")
    assert "no longer exists" in task.detail


def test_a_task_that_was_given_up(
    user_app: Celery,
    bus: EventBus,
    client: Redis,
    start_subscriber: StartSubscriber,
    state: Callable[[], str],
    settings: BridgeSettings,
) -> None:
    """GIVEN_UP comes with reason, text and id of the dead letter; when the task starts after all, it is STARTED."""
    event = bus.publish("plain.made", id="e").event
    start_subscriber(app=user_app)
    storage, task_id = Storage(client, settings), task_id_for("tests", "e", f"{HERE}.plain")
    letter = DeadLetter.of_event("redispatch_limit", "never ended", event, event.encode(), f"{HERE}.plain", task_id)
    eventually(storage.ledger.size, "the task is sent")
    storage.dead_letters.end_task_with(letter, None)
    ((task,),) = TaskStates(user_app, storage).states([("e", "plain.made")])
    (kept,) = storage.dead_letters.latest(1)
    assert (task.state, task.detail) == ("GIVEN_UP", "redispatch_limit: never ended")
    assert task.dead_letter_id == kept.dead_letter_id
    storage.ledger.start_run(task_id, "run", idempotent=True)
    assert state() == "STARTED"


def test_skipped_tasks(
    user_app: Celery, bus: EventBus, client: Redis, start_subscriber: StartSubscriber, settings: BridgeSettings
) -> None:
    """After dispatch, a task is SKIPPED if the predicate refused the event; a type without handlers has no tasks."""
    outcomes = TaskStates(user_app, Storage(client, settings))
    bus.publish("trip.ticket", {"seat": 2}, id="e")
    asked = [("e", "trip.ticket"), ("e", "no.handler")]
    assert [[task.state for task in found] for found in outcomes.states(asked[:1])] == [["WAITING"]]
    start_subscriber(app=user_app)
    eventually(lambda: [task.state for task in outcomes.states(asked[:1])[0]] == ["SKIPPED"], "the event is dispatched")
    assert outcomes.states(asked[1:]) == [[]]


def test_many_states_take_a_few_round_trips(
    user_app: Celery, bus: EventBus, client: Redis, settings: BridgeSettings, round_trips: RoundTrips
) -> None:
    """The states of 200 events are read together, in order."""
    bus.publish_many([Event(type="plain.made", id=f"n{number}") for number in range(200)])
    user_app.conf.result_backend = "disabled"
    pairs = [(f"n{number}", "plain.made") for number in range(200)]
    outcomes = TaskStates(user_app, Storage(client, settings))
    wanted = [task_id_for("tests", event_id, f"{HERE}.plain") for event_id, _ in pairs]
    assert [[task.task_id for task in one] for one in outcomes.states(pairs)] == [[task_id] for task_id in wanted]
    assert round_trips(lambda: outcomes.states(pairs)) <= 4


def test_a_result_backend_that_is_away_costs_little(
    user_app: Celery, bus: EventBus, client: Redis, settings: BridgeSettings, proxy: Proxy
) -> None:
    """While the result backend hangs, states from the ledger are returned within seconds, however long the chain is."""
    user_app.conf.result_backend = proxy.url
    proxy.blackhole()
    above = "root"
    bus.publish(Event(type="plain.made", id=above))
    for number in range(10):
        parts = {"causationId": above, "taskId": f"elsewhere{number}"}
        above = bus.publish(Event(type="plain.made", id=f"n{number}", metadata=parts)).event.id
    Storage(client, settings).ledger.end(task_id_for("tests", "n9", f"{HERE}.plain"), Ended())
    begun_s = time.monotonic()
    found = Tracer(user_app, Storage(client, settings)).trace("root")
    assert time.monotonic() - begun_s < 4
    assert found is not None
    states = {task.task_id: task.state for task in tasks(found.roots[0])}
    assert states[task_id_for("tests", "n9", f"{HERE}.plain")] == "SUCCESS"
    assert states[task_id_for("tests", "n8", f"{HERE}.plain")] == "WAITING"
    assert states["elsewhere3"] == "UNKNOWN"
    assert proxy.done["blackhole"] == 1


def test_a_backend_that_refuses_costs_nothing(user_app: Celery, bus: EventBus, client: Redis, proxy: Proxy) -> None:
    """A backend that refuses connections or is disabled causes no error of the trace."""
    bus.publish("plain.made", id="e")
    proxy.refuse()
    for backend in (proxy.url, "disabled"):
        user_app.conf.result_backend = backend
        assert trees(Tracer(user_app, Storage(client, bus.settings)), "e") == [("plain.made", [("plain WAITING", [])])]

"""The trace of a trip through a real worker."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.operations.replay import Replay
from bridge.operations.replay_sources import DeadLetterSource
from bridge.operations.task_states import TaskStates
from bridge.operations.trace import Tracer
from bridge.storage.entries import EntryFilter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.processes import Processes
from tests.support.replays import registry_of
from tests.support.trees import events, tasks, trees
from tests.support.waiting import eventually

HERE = "tests.chains"


@pytest.fixture
def tracer(user_app: Celery, client: Redis, settings: BridgeSettings) -> Tracer:
    return Tracer(user_app, Storage(client, settings))


FLIGHT = (
    "trip.flight",
    [("flight SUCCESS", [("trip.ticket", [("ticket SKIPPED", [])]), ("trip.ticket", [("ticket SUCCESS", [])])])],
)
FAILED = ("hotel FAILURE", [])
RETRIED = ("hotel SUCCESS again", [("trip.ticket", [("ticket SUCCESS", [])])])


def trip(*hotel: Any) -> Any:
    return [("trip.booked", [("trip SUCCESS", [FLIGHT, ("trip.hotel", list(hotel))])])]


def test_a_real_trip(
    processes: Processes, bus: EventBus, client: Redis, settings: BridgeSettings, tracer: Tracer, user_app: Celery
) -> None:
    """Three levels with fan-out and a failure give the same tree for each of their ids; a retry is a further task."""
    processes.celery("worker", "-n", "w1@test", "-c", "2", name="w1", app=HERE)
    bus.publish("trip.booked", id="trip", correlation_id="journey")
    eventually(lambda: trees(tracer, "trip") == trip(FAILED), "the trace has the whole tree", 30)
    found = tracer.trace("trip")
    assert found is not None
    assert (found.requested_id, found.correlation_id, found.hidden) == ("trip", "journey", 0)
    (root,) = found.roots
    assert root.at_ms == int(client.xrange(Keys(settings.channel_prefix).journal, count=1)[0][0].split(b"-")[0])
    assert {event.source for event in events(root)} == {"bridge", "tests"}
    for one in [*(event.event_id for event in events(root)), "journey"]:
        again = tracer.trace(one)
        assert again is not None
        assert (again.roots, again.correlation_id) == ((root,), "journey"), one

    (failed,) = [task for task in tasks(root) if task.state == "FAILURE"]
    assert (failed.detail, failed.queue) == ("failure: RuntimeError: no room", "celery")
    ran = [task for task in tasks(root) if task.state in ("SUCCESS", "FAILURE")]
    assert all(task.runtime_s is not None and 0 <= task.runtime_s < 10 for task in ran)
    (letter,) = Storage(client, settings).dead_letters.latest(10)
    assert (letter.dead_letter_id, letter.task_id) == (failed.dead_letter_id, failed.task_id)

    client.set(f"{settings.channel_prefix}room", 1)
    source = DeadLetterSource(Storage(client, settings), EntryFilter(), registry_of({f"{HERE}.hotel": "trip.hotel"}))
    list(Replay(Storage(client, settings), source, "again", {}).run(100))
    eventually(
        lambda: trees(tracer, "journey") == trip(FAILED, RETRIED), "the trace has the retry and its consequences"
    )
    hotel = next(event for event in events(tracer.trace("trip").roots[0]) if event.event_type == "trip.hotel")  # type: ignore[union-attr]
    assert [(task.replay, task.dead_letter_id) for task in hotel.tasks] == [("", ""), ("again", "")]
    assert hotel.tasks[0].detail == "its dead letter no longer exists: it was retried, purged or evicted"
    ((newest,),) = TaskStates(user_app, Storage(client, settings)).states([(hotel.event_id, hotel.event_type)])
    assert (newest.state, newest.replay) == ("SUCCESS", "again")

    marks = [key for key in client.scan_iter(match=f"*{settings.channel_prefix}*") if b"done:" in key]
    assert client.delete(*marks) == 6
    # The result backend has what is no longer in the ledger. Celery stores a result only after the end of its task.
    eventually(lambda: trees(tracer, "journey") == trip(FAILED, RETRIED), "the trace has the same tree")
    assert {task.runtime_s for task in tasks(tracer.trace("trip").roots[0])} == {None}  # type: ignore[union-attr]

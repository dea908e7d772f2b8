"""Real workers: ``celery -A tests.app worker`` with the bridge, which run tasks, are inspected and are stopped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import psutil
import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.config.settings import BridgeSettings
from bridge.handlers.handler import task_id_for
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.processes import STOP_S, Processes, stops_worker
from tests.support.site import Effects
from tests.support.waiting import eventually


@pytest.fixture
def bus(server: RedisServer, prefix: str) -> Any:
    with EventBus(redis_url=server.url, channel_prefix=prefix) as connected:
        yield connected


@pytest.fixture
def effects(client: Redis, prefix: str) -> Effects:
    return Effects(client, prefix)


def inspect(processes: Processes, what: str) -> dict[str, Any]:
    """Return the reply of ``celery inspect`` by worker; empty while no worker replies."""
    found = re.search(r"^\{.*\}$", processes.output("inspect", what, "--json"), re.MULTILINE | re.DOTALL)
    return json.loads(found[0]) if found else {}


def stats(processes: Processes) -> dict[str, Any]:
    return inspect(processes, "stats")


@stops_worker
@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_events_run_tasks_in_every_pool(
    processes: Processes, bus: EventBus, effects: Effects, client: Redis, prefix: str, pool: str
) -> None:
    """Events published before and after the start of the worker run their tasks; SIGTERM ends it with status 0."""
    bus.publish("dream.created", id="early")
    # As users start it: in a new interpreter, and with "mingle", which requests revoked tasks from other workers.
    command = (sys.executable, "-m", "celery", "-A", "tests.app", "worker", "-n", "w1@test", "-c", "2", "-P", pool)
    worker = processes.start(*command, name="w1", BRIDGE_BLOCK_MS="1000")
    effects.wait_for("plain early", "glob early")
    foreign = Event(type="dream.created", id="foreign").encode()  # without a key, so it must be received on its channel
    eventually(lambda: client.publish(f"{prefix}dream.created", foreign), "the worker is subscribed")
    bus.publish("slow.created", 0.3, id="slow")
    effects.wait_for("plain foreign", "glob foreign", "slow slow")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(STOP_S) == 0
    assert set(effects.all().values()) == {1}
    assert client.xinfo_consumers(Keys(prefix).journal, "tests") == []  # it has left the group
    assert "Traceback" not in processes.log("w1")


def test_typed_routed_and_bound_handlers(processes: Processes, bus: EventBus, effects: Effects) -> None:
    """Payload models, queues by event type or decorator, and bind=True with retries work as documented.

    A worker without -Q takes the queues of its handlers.
    """
    processes.worker("w1")
    bus.publish("typed.created", {"dreamId": "41"})
    bus.publish("routed.created")
    bus.publish("own.created")
    bus.publish("routed.elsewhere")
    effects.wait_for("typed 42", "routed routed", "routed celery", "elsewhere elsewhere")
    bus.publish("bound.created")
    effects.wait_for("bound 0", "bound 1", "bound 2")
    eventually(lambda: sum(n for name, n in effects.all().items() if name.startswith("step ")) >= 1, "a step has run")
    bus.publish("typed.created", {"dreamId": 1})
    effects.wait_for("typed 2")
    steps = [name for name in effects.all().elements() if name.startswith("step ")]
    assert len(steps) == 1, "a retried task publishes the same event, which is dispatched once"


def test_what_does_not_fit_or_fails_is_a_dead_letter(
    processes: Processes, bus: EventBus, effects: Effects, server: RedisServer, prefix: str
) -> None:
    """An invalid payload, and a handler that fails permanently, become one dead letter each."""
    processes.worker()
    bus.publish("typed.created", {"dreamId": "no number"}, id="bad")
    bus.publish("failing.created", id="failing")
    settings = BridgeSettings.load(redis_url=server.url, channel_prefix=prefix, group="tests")
    letters = Storage(bus.client, settings).dead_letters
    eventually(lambda: len(letters.latest(10)) == 2, "there are two dead letters")
    by_reason = {letter.reason: letter for letter in letters.latest(10)}
    assert by_reason["payload"].event_id == "bad"
    assert "payload.dreamId" in by_reason["payload"].detail
    assert by_reason["failure"].detail == "RuntimeError: as intended"
    assert by_reason["failure"].task_id == task_id_for("tests", "failing", "tests.app.failing")
    assert json.loads(by_reason["failure"].raw)["id"] == "failing"


def test_events_published_by_tasks_join_the_chain(processes: Processes, bus: EventBus, effects: Effects) -> None:
    """Correlation, cause, task and hops reach the events of subtasks, two levels down and at the end of a chain."""
    processes.worker()
    bus.publish("sub.created", id="root", correlation_id="corr")
    task_id = task_id_for("tests", "root", "tests.app.starts_subtasks")
    expected = f"sub corr {{'causationId': 'root', 'hops': 1, 'taskId': '{task_id}'}}"
    eventually(lambda: effects.all()[expected] == 3, "three events belong to the chain")


def test_a_handler_that_calls_itself_publishes_once_per_level(
    processes: Processes, bus: EventBus, effects: Effects
) -> None:
    """A handler that is called as a plain function belongs to the run of the task; its events have different ids."""
    processes.worker()
    bus.publish("deep.created", 2)
    effects.wait_for("deep 0", "deep 1", "deep 2")
    assert effects.all() == {"deep 0": 1, "deep 1": 1, "deep 2": 1}


def test_tasks_wait_for_a_bus_that_is_away(processes: Processes, own_server: RedisServer, prefix: str) -> None:
    """While the bus is down, no task runs; messages wait, with early and with late acknowledgement."""
    environment = {"BRIDGE_REDIS_URL": own_server.url}
    subscriber = processes.celery("bus", "subscribe", name="subscriber", **environment)
    with EventBus(redis_url=own_server.url, channel_prefix=prefix) as bus:
        bus.publish("early.created", id="x")
        bus.publish("dream.made", id="y")
    with Redis.from_url(processes.environment["REDIS_URL"]) as broker:
        eventually(lambda: broker.llen(f"broker:{prefix}celery") == 2, "both messages are queued")
    subscriber.kill()
    own_server.kill()
    processes.worker("w1", "--no-subscriber", **environment, BRIDGE_PUBLISH_TIMEOUT_S="0.1")
    # More often than a task may be retried: waiting for the bus does not count as a retry.
    received = "Task tests.app.early["
    eventually(lambda: processes.log("w1").count(received) > 4, "the early one is repeatedly sent again", 50)
    own_server.start()
    with Redis.from_url(own_server.url) as client:
        Effects(client, prefix).wait_for("early x", "glob y")
        assert Effects(client, prefix).all() == {"early x": 1, "glob y": 1}


@pytest.mark.parametrize("looping", ["loop.again", "loop.thread"])
def test_loops_end(
    looping: str, processes: Processes, bus: EventBus, effects: Effects, server: RedisServer, prefix: str
) -> None:
    """A handler that publishes the event that it handles, in a thread too, does not fail: max_hops ends the chain."""
    processes.worker("w1", BRIDGE_MAX_HOPS="4")
    bus.publish(looping)
    settings = BridgeSettings.load(redis_url=server.url, channel_prefix=prefix, group="tests")
    letters = Storage(bus.client, settings).dead_letters
    eventually(lambda: letters.latest(10), "the last hop has a dead letter")
    (letter,) = letters.latest(10)
    assert (letter.reason, letter.origin) == ("hop_limit", "journal")
    assert "4 publications from the first event of its chain, bridge_max_hops is 4" in letter.detail
    assert effects.all() == {f"loop {hops}": 1 for hops in range(4)}


def test_a_message_delivered_twice_has_one_effect(
    processes: Processes, bus: EventBus, effects: Effects, client: Redis, prefix: str
) -> None:
    """A second copy of a task message is skipped, and monitors receive ``task-deduplicated``."""
    from celery.events.state import State

    from tests.app import app

    bus.publish("dream.created", id="twice")
    processes.celery("bus", "subscribe", name="subscriber")
    eventually(lambda: client.llen(f"broker:{prefix}celery") == 2, "both messages are queued")
    for message in client.lrange(f"broker:{prefix}celery", 0, -1):
        client.lpush(f"broker:{prefix}celery", message)
    app.conf.update(broker_url=processes.environment["REDIS_URL"])
    app.conf.broker_transport_options["global_keyprefix"] = f"broker:{prefix}"
    state, heard = State(), Counter()

    def note(event: dict[str, Any]) -> None:
        state.event(event)
        heard[f"{event['type']} {event.get('uuid')}"] += 1

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        processes.worker("w1", "--no-subscriber", "-c", "1")
        capture = receiver.itercapture(limit=None, timeout=None, wakeup=False)
        task_id = task_id_for("tests", "twice", "tests.app.plain")

        def told() -> bool:
            next(capture)
            return heard[f"task-deduplicated {task_id}"] == 1

        eventually(told, "monitors receive the event about the second copy")
    assert heard[f"task-succeeded {task_id}"] == 1
    assert state.tasks[task_id].state == "SUCCESS"  # the state that a monitor shows for the task
    assert state.tasks[task_id].args == "(<Event dream.created twice>,)"
    assert effects.all() == {"plain twice": 1, "glob twice": 1}


def test_subscriber_alone_and_worker_without(processes: Processes, bus: EventBus, effects: Effects) -> None:
    """``bus subscribe`` dispatches and runs no task; ``worker --no-subscriber`` runs tasks and does not dispatch."""
    processes.worker("w1", "--no-subscriber")
    eventually(lambda: "ready." in processes.log("w1"), "the worker is ready", 30)
    assert "bridge" not in eventually(lambda: stats(processes), "the worker replies")["w1@test"]
    subscriber = processes.celery("bus", "subscribe", name="subscriber")
    bus.publish("dream.created", id="x")
    effects.wait_for("plain x", "glob x")
    subscriber.send_signal(signal.SIGTERM)
    assert subscriber.wait(10) == 0
    assert "Traceback" not in processes.log("subscriber")


def test_inspect_stats_shows_the_bridge(processes: Processes, bus: EventBus, effects: Effects) -> None:
    """``celery inspect stats``, which Flower also uses, shows the counters of the subscriber."""
    processes.worker()
    bus.publish("dream.created", id="x")
    effects.wait_for("plain x", "glob x")
    wanted = {"group": "tests", "state": "ready", "dispatched": 2}.items()  # it dispatches before it is ready
    eventually(
        lambda: wanted <= stats(processes).get("w1@test", {}).get("bridge", {}).items(), "two dispatches are counted"
    )


def test_monitors_see_no_payload_and_no_password(processes: Processes, bus: EventBus) -> None:
    """Messages that a worker holds, and its configuration, are shown without payloads and passwords."""
    processes.worker("w1", "-c", "1")
    for number in range(3):
        bus.publish("slow.created", 20, id=f"slow{number}", metadata={"note": "event-s3cret"})
    waiting = eventually(lambda: inspect(processes, "reserved").get("w1@test"), "messages wait in the worker")
    assert waiting[0]["args"].startswith("(<Event slow.created slow")
    assert "s3cret" not in str(waiting)
    conf = eventually(lambda: inspect(processes, "conf").get("w1@test"), "the worker replies")
    assert "bridge_redis_url" in conf
    assert "s3cret" not in str(conf)


def test_misspelt_settings_end_the_worker(processes: Processes) -> None:
    """A worker with a misspelt variable does not start, and the error contains the correct name."""
    worker = processes.worker("w1", BRIDGE_CHANEL_PREFIX="x:")
    assert worker.wait(20) != 0
    assert "did you mean BRIDGE_CHANNEL_PREFIX?" in processes.log("w1")


def force_if_stuck(processes: Processes, worker: Any) -> None:
    """Send SIGQUIT twice more, by which Celery ends at once, if its handler of the first one does not return.

    Celery 5.7 stops its pool within that handler. If the signal comes between the two parts of a message that it is
    writing to a pool process, that process waits for the second part forever, and Celery for the process.
    """
    try:
        worker.wait(30)
    except subprocess.TimeoutExpired:
        if "Cold shutdown" not in processes.log("w1"):
            worker.send_signal(signal.SIGQUIT)
            eventually(lambda: "Cold shutdown" in processes.log("w1"), "Celery handles the second signal")
            worker.send_signal(signal.SIGQUIT)


@stops_worker
@pytest.mark.parametrize(
    ("how", "pool"),
    [(signal.SIGTERM, "prefork"), (signal.SIGQUIT, "prefork"), (signal.SIGINT, "threads")],
    ids=["warm", "cold", "ctrl-c"],
)
def test_shutdown_under_load_loses_nothing(
    processes: Processes, bus: EventBus, effects: Effects, how: signal.Signals, pool: str
) -> None:
    """A worker that is stopped under load leaves no process behind; another worker runs the remaining tasks."""
    ids = [f"n{number}" for number in range(400)]
    bus.publish_many([Event(type="dream.made", id=event_id) for event_id in ids])
    worker = processes.worker("w1", "-P", pool)
    eventually(lambda: len(effects.all()) > 20, "the worker runs tasks", 30)
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    worker.send_signal(how)
    if how is signal.SIGQUIT:
        force_if_stuck(processes, worker)
    worker.wait(STOP_S)
    eventually(lambda: not any(process.is_running() for process in family[1:]), "no process is left")
    assert len(effects.all()) < len(ids), "it was stopped under load"
    # Reserved messages wait for the broker's visibility timeout, which is an hour by default.
    processes.worker("w2", TEST_VISIBILITY_TIMEOUT_S="1")
    effects.wait_for(*(f"glob {event_id}" for event_id in ids), timeout_s=40)
    # A cold shutdown interrupts the two running tasks, possibly between their effect and their done mark.
    assert effects.all().total() - len(ids) <= (2 if how is signal.SIGQUIT else 0)

"""``bus replay`` and ``bus dead retry`` with real workers."""

from __future__ import annotations

import signal

from redis import Redis

from bridge import EventBus
from bridge.handlers.handler import task_id_for
from tests.support.processes import Processes
from tests.support.replays import Replays
from tests.support.site import Site
from tests.support.waiting import eventually

# From end to end


def test_a_dead_letter_runs_again_when_its_cause_is_gone(site: Site, bus: EventBus, client: Redis) -> None:
    """A retried task has a new id and the replay in the metadata of its event; its dead letter is deleted."""
    site.worker()
    bus.publish("fixable.created", id="e")
    assert site.letter().handler == "tests.app.fixable"
    client.set(f"{site.prefix}cause-gone", 1)
    command = ("bus", "dead", "retry", "--handler", "tests.app.fixable", "--since", "1h", "--name", "fixed")
    assert site.processes.celery(*command, name="replay").wait(30) == 0
    assert "replay fixed: 1 replayed" in site.processes.log("replay")
    (effect,) = eventually(site.effects, "the task has run")
    task_id = task_id_for("tests", "e", "tests.app.fixable", "fixed")
    assert task_id != task_id_for("tests", "e", "tests.app.fixable")
    assert effect.startswith(f"fixable e {task_id} {{'replay': {{'name': 'fixed', 'at': ")
    eventually(site.nothing_left, "no task is left")
    assert not site.letters.latest(1)


def test_a_replay_from_the_journal_runs_one_handler_again(site: Site, bus: EventBus) -> None:
    """With --handler, exactly that task runs again, once for each event that it handles, even if it has a done mark."""
    site.worker()
    for number in range(5):
        bus.publish("dream.created", id=f"e{number}")
    bus.publish("dream.deleted", id="other")  # glob handles it, plain does not
    eventually(lambda: site.effects().total() == 11, "all tasks have run")
    replay = ("bus", "replay", "--handler", "tests.app.plain", "--since", "1h", "--name", "again")
    assert site.processes.celery(*replay, name="replay").wait(30) == 0
    eventually(lambda: site.effects().total() == 16, "the replayed tasks have run")
    bus.publish("dream.created", id="last")
    eventually(lambda: site.effects()["glob last"], "an event after the replay is handled")
    eventually(site.nothing_left, "no task is left")
    assert {f"plain e{number}": 2 for number in range(5)}.items() <= site.effects().items()
    assert {f"glob e{number}": 1 for number in range(5)}.items() <= site.effects().items()
    assert site.effects()["glob other"] == 1


def test_a_replay_killed_half_way_goes_on(processes: Processes, replays: Replays, bus: EventBus) -> None:
    """After SIGKILL, the same command resumes: each event is replayed once, and a relative time keeps its meaning."""
    for number in range(60):
        bus.publish("dream.created", number, id=f"e{number}")
    command = ("bus", "replay", "--since", "1h", "--name", "long", "--rate")
    killed = processes.celery(*command, "20", name="killed")
    eventually(lambda: len(replays.ids()) >= 10, "the replay is running")
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(10) == -signal.SIGKILL
    assert 10 <= len(replays.ids()) < 60
    assert processes.celery(*command, "10000", name="again").wait(30) == 0
    assert "replay long: 60 replayed" in processes.log("again")
    assert replays.ids() == [f"e{number}" for number in range(60)]
    assert processes.celery(*command, "10000", name="third").wait(30) == 0
    assert "is already finished" in processes.log("third")
    assert len(replays.ids()) == 60


def test_an_interrupted_command_says_how_to_go_on(processes: Processes, replays: Replays, bus: EventBus) -> None:
    """Ctrl-C ends the command with status 130 and the name with which it can be resumed."""
    for number in range(60):
        bus.publish("dream.created", number, id=f"e{number}")
    process = processes.celery("bus", "replay", "--all", "--rate", "10", name="replay")
    eventually(replays.ids, "the replay is running")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    (key,) = replays.client.keys(replays.keys.replay("tests", "*").replace("{", "?"))
    name = key.decode().rpartition(":")[2]
    assert f"the same command with --name {name} resumes it" in processes.log("replay")

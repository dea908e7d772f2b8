"""``bus replay`` and ``bus dead retry`` with real workers."""

from __future__ import annotations

import signal

from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.storage import Storage
from tests.support.processes import Processes
from tests.support.replays import Replays
from tests.support.site import Site
from tests.support.terminal import OpenTerminal
from tests.support.waiting import eventually

# From end to end


def test_a_dead_letter_runs_again_when_its_cause_is_gone(site: Site, bus: EventBus, client: Redis) -> None:
    """A retried task has a new id and the replay in the metadata of its event; its dead letter is deleted."""
    site.worker()
    bus.publish("fixable.created", id="e")
    assert site.letter().handler == "tests.app.fixable"
    client.set(f"{site.prefix}cause-gone", 1)
    command = ("bus", "dead", "retry", "--handler", "tests.app.fixable", "--since", "1h", "--name", "fixed", "-y")
    assert site.processes.celery(*command, name="replay").wait(30) == 0
    assert "replay fixed: 1 retried" in site.processes.log("replay")
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
    replay = ("bus", "replay", "--handler", "tests.app.plain", "--since", "1h", "--name", "again", "-y")
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
    killed = processes.celery(*command, "20", "--yes", name="killed")
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
    process = processes.celery("bus", "replay", "--all", "--rate", "10", "--yes", name="replay")
    eventually(replays.ids, "the replay is running")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    (key,) = replays.client.keys(replays.keys.replay("tests", "*").replace("{", "?"))
    name = key.decode().rpartition(":")[2]
    assert f"the same command with --name {name} resumes it" in processes.log("replay")


def test_a_replay_says_what_follows_and_asks(
    processes: Processes, terminal: OpenTerminal, bus: EventBus, client: Redis, settings: BridgeSettings
) -> None:
    """At a terminal, the question names the tasks and what followed; after "no" nothing runs, after "y" all of it does.

    What the replayed tasks publish are new events with new ids.
    """
    app = "tests.chains"
    processes.celery("worker", "-n", "w1@test", "-c", "2", name="w1", app=app)
    client.set(f"{settings.channel_prefix}room", 1)
    bus.publish("trip.booked", id="trip")

    def tickets() -> set[bytes]:
        """Return the effects of the last tasks: two of the three tickets, since where= rejects the third."""
        return set(client.lrange(f"{settings.channel_prefix}effects", 0, -1))

    before = eventually(lambda: len(tickets()) == 2 and tickets(), "the chain has run", 40)
    ledger = Storage(client, settings).ledger
    eventually(lambda: ledger.size() == 0, "the ends of all tasks are recorded")
    question = "Replay 1 event? [y/N]"
    for answer, status in (("n\n", 1), ("y\n", 0)):
        asking = terminal("bus", "replay", "--type", "trip.booked", app=app, columns=300)
        asking.shows(question)
        for text in (
            "1 task would run: tests.chains.trip 1",
            "1 had succeeded before and would run again: all of them",
            "last time 5 events followed, with 4 tasks of this application: ",
            "tests.chains.ticket 2",
        ):
            assert text in asking.text
        assert tickets() == before
        asking.type(answer)
        assert asking.wait() == status
    eventually(lambda: len(tickets()) == 4, "the tickets were issued again, for new events")

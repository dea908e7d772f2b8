"""``bus replay`` and ``bus dead``: with real workers and processes from end to end, and what they say."""

from __future__ import annotations

import json
import signal

import pytest
from redis import Redis

from bridge import Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.entries import EntryFilter
from tests.cli.conftest import Say
from tests.conftest import Processes, eventually
from tests.replays import Bench
from tests.test_execution import Site

# From end to end


def test_a_dead_letter_runs_again_when_its_cause_is_gone(site: Site, bus: EventBus, client: Redis) -> None:
    """The task runs under a new id, finds the replay in the metadata of its event, and the dead letter is gone."""
    site.worker()
    bus.publish("mended.created", id="e")
    assert site.letter().handler == "tests.app.mended"
    client.set(f"{site.prefix}cause-gone", 1)
    command = ("bus", "dead", "retry", "--handler", "tests.app.mended", "--since", "1h", "--name", "fixed")
    assert site.processes.celery(*command, name="replay").wait(30) == 0
    assert "replay fixed: 1 replayed" in site.processes.log("replay")
    (effect,) = eventually(site.effects, "the task has run")
    task_id = task_id_for("tests", "e", "tests.app.mended", "fixed")
    assert task_id != task_id_for("tests", "e", "tests.app.mended")
    assert effect.startswith(f"mended e {task_id} {{'replay': {{'name': 'fixed', 'at': ")
    eventually(site.nothing_left, "nothing is left")
    assert not site.letters.latest(1)


def test_a_replay_from_the_journal_runs_one_handler_again(site: Site, bus: EventBus) -> None:
    """With --handler that task runs once more per event that it takes, and no other; neither do done ones."""
    site.worker()
    for number in range(5):
        bus.publish("dream.created", id=f"e{number}")
    bus.publish("dream.deleted", id="other")  # glob takes it, plain does not
    eventually(lambda: site.effects().total() == 11, "the first time")
    replay = ("bus", "replay", "--handler", "tests.app.plain", "--since", "1h", "--name", "again")
    assert site.processes.celery(*replay, name="replay").wait(30) == 0
    eventually(lambda: site.effects().total() == 16, "once more")
    bus.publish("dream.created", id="last")
    eventually(lambda: site.effects()["glob last"], "what comes after it")
    eventually(site.nothing_left, "nothing is left")
    assert {f"plain e{number}": 2 for number in range(5)}.items() <= site.effects().items()
    assert {f"glob e{number}": 1 for number in range(5)}.items() <= site.effects().items()
    assert site.effects()["glob other"] == 1


def test_a_replay_killed_half_way_goes_on(processes: Processes, bench: Bench, bus: EventBus) -> None:
    """After SIGKILL the same command goes on: each event is replayed once, and its relative time means the same."""
    for number in range(60):
        bus.publish("dream.created", number, id=f"e{number}")
    command = ("bus", "replay", "--since", "1h", "--name", "long", "--rate")
    killed = processes.celery(*command, "20", name="killed")
    eventually(lambda: len(bench.ids()) >= 10, "it is under way")
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(10) == -signal.SIGKILL
    assert 10 <= len(bench.ids()) < 60
    assert processes.celery(*command, "10000", name="again").wait(30) == 0
    assert "replay long: 60 replayed" in processes.log("again")
    assert bench.ids() == [f"e{number}" for number in range(60)]
    assert processes.celery(*command, "10000", name="third").wait(30) == 0
    assert "has finished before" in processes.log("third")
    assert len(bench.ids()) == 60


def test_an_interrupted_command_says_how_to_go_on(processes: Processes, bench: Bench, bus: EventBus) -> None:
    """Ctrl-C ends it with status 130 and the name of the replay."""
    for number in range(60):
        bus.publish("dream.created", number, id=f"e{number}")
    process = processes.celery("bus", "replay", "--all", "--rate", "10", name="replay")
    eventually(bench.ids, "it is under way")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    (key,) = bench.client.keys(bench.keys.replay("tests", "*").replace("{", "?"))
    name = key.decode().rpartition(":")[2]
    assert f"the same command with --name {name} goes on" in processes.log("replay")


# What they say


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("replay", "say which: with filters such as --since or --id, or --all"),
        ("replay --all --id e", "--all goes without filters"),
        ("replay --since soon", "'soon' is no time: write how long ago (90s, 30m, 2h, 7d)"),
        ("replay --since 0001-01-01", "is no time"),
        ("replay --until 99999999d", "is no time"),
        ("replay --type [", "is not closed"),
        ("replay --all --rate 0", "--rate"),
        ("replay --all --rate inf", "--rate"),
        ("dead purge", "say which"),
        ("dead show", "Missing argument"),
    ],
)
def test_wrong_usage_is_named(say: Say, command: str, says: str) -> None:
    """A mistake in the command line ends with status 2 and what to write instead."""
    assert says in say(*command.split(), expect=2).output


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("replay --all", "nothing to replay matches"),
        ("replay --handler t.exakt", "there is no handler t.exakt; did you mean t.exact?"),
        ("dead retry --handler zzz", "there is no handler zzz; there are t.exact, t.plain"),
        ("dead retry --reason failure", "nothing to replay matches"),
        ("dead show 1-1", "no dead letter has the id 1-1; see bus dead list"),
        ("replay --all --name a/b", "'a/b' is no name for a replay"),
    ],
)
def test_what_cannot_be_done_is_named(say: Say, command: str, says: str) -> None:
    """What is not there ends with status 1 and what to do."""
    assert says in say(*command.split(), expect=1).output


@pytest.mark.parametrize("command", ["dead list", "dead purge --all", "replay --all", "dead show 1-1"])
def test_a_redis_that_is_away_is_named(say: Say, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis every command ends with one line that names it."""
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    output = say(*command.split(), expect=3).output
    assert "Redis at redis://127.0.0.1:1/0 does not answer" in output
    assert "the address in REDIS_URL" in output
    assert "s3cret" not in output


def test_other_filters_under_one_name_are_refused(say: Say, bus: EventBus) -> None:
    """A name belongs to what was asked first, time as it was written."""
    bus.publish("dream.created", id="e")
    say("replay", "--since", "1h", "--name", "r")
    assert "has finished before" in say("replay", "--since", "1h", "--name", "r").output
    assert (
        'was begun with {"from": "journal", "since": "1h"}'
        in say("replay", "--since", "2h", "--name", "r", expect=1).output
    )
    assert "choose another name" in say("dead", "retry", "--since", "1h", "--name", "r", expect=1).output


def test_a_dry_run_shows_and_counts(say: Say, bench: Bench, bus: EventBus) -> None:
    """The first events, how many in all, and why some cannot be replayed; for programs, all of them."""
    for number in range(25):
        bus.publish("dream.created", id=f"e{number}")
    output = say("replay", "--handler", "t.exact", "--dry-run").stdout
    assert output.splitlines()[0] == "dream.created  e0  t.exact"
    assert "25 would be replayed, the first 20 are shown" in output
    assert "e20" not in output
    bench.park(1)
    bench.letters.add(DeadLetter.of_message("json", "", "channel", b"\x1b[2J{"))
    output = say("dead", "retry", "--all", "--dry-run").output
    assert "1 would be replayed" in output
    assert "1 cannot be: event: not JSON" in output
    rows = [json.loads(line) for line in say("dead", "retry", "--all", "--dry-run", "--json").stdout.splitlines()]
    assert [(row["id"], row["handler"], bool(row["problem"])) for row in rows] == [
        ("n1", "t.exact", False),
        ("", "", True),
    ]
    assert not bench.ids()
    assert bench.letters.size().letters == 2


def test_dead_letters_are_listed_and_shown(say: Say, bench: Bench) -> None:
    """A table for people, in which nothing commands the terminal, and JSON for programs."""
    event = Event(type="dream.created", id="e", payload="\x1b[31mred")
    bench.letters.add(
        DeadLetter.of_event("failure", "\x1b[31m" + "d" * 99, event, event.encode(), "t.exact", "t1", traceback="a\nb")
    )
    bench.letters.add(DeadLetter.of_message("json", "no\nJSON", "ch\x1b[0mannel", b"\xff\x1b[2J"))
    result = say("dead", "list")
    rows = result.stdout.splitlines()
    assert rows[0].split() == ["ID", "TIME", "REASON", "TYPE", "EVENT", "HANDLER", "DETAIL"]
    assert r"no\nJSON" in rows[1]
    assert "dream.created" in rows[2]
    assert "2 shown of 2 dead letters of group tests" in result.stderr
    shown = say("dead", "show", "e").output
    assert "t.exact" in shown
    assert "  a\n  b\n" in shown
    assert "\x1b" not in result.output + shown + say("dead", "list", "--json").output
    (row,) = (json.loads(line) for line in say("dead", "list", "--reason", "j*", "--json").stdout.splitlines())
    assert (row["reason"], row["raw"], row["size"]) == ("json", "\\xff\x1b[2J", 5)


def test_dead_letters_are_removed_with_force(say: Say, bench: Bench) -> None:
    """Exactly those that the filters say; without a terminal there is nobody to ask."""
    for number in range(250):
        bench.park(number)
    bench.park(250, reason="payload")
    output = say("dead", "purge", "--reason", "failure", input="y\n", expect=2).output
    assert "Remove 250 dead letters of group tests for good?" in output
    assert "--force does it without asking" in output
    assert bench.letters.size().letters == 251
    assert "250 removed" in say("dead", "purge", "--reason", "failure", "--force").output
    assert [letter.reason for letter in bench.letters.select(EntryFilter())] == ["payload"]
    assert "0 removed" in say("dead", "purge", "--reason", "failure").output

"""``bus replay`` and ``bus dead``: their options, output and errors."""

from __future__ import annotations

import json

import pytest

from bridge import Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.operations.replay import Replay
from bridge.operations.replay_sources import JournalSource
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.entries import EntryFilter
from bridge.storage.in_flight import Ended
from bridge.storage.storage import Storage
from tests.support.apps import Invoke
from tests.support.replays import Replays


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("replay", "give filters such as --since or --id, or --all"),
        ("replay --all --id e", "--all cannot be combined with filters"),
        ("replay --since soon", "'soon' is not a time; write 90s, 30m, 2h or 7d (ago)"),
        ("replay --since 0001-01-01", "is not a time"),
        ("replay --until 99999999d", "is not a time"),
        ("replay --type [", "is not closed"),
        ("replay --all --rate 0", "--rate"),
        ("replay --all --rate inf", "--rate"),
        ("dead purge", "give filters"),
        ("dead show", "Missing argument"),
    ],
)
def test_wrong_usage_is_named(invoke: Invoke, command: str, says: str) -> None:
    """A mistake in the command line ends with status 2, and the error explains what to write instead."""
    assert says in invoke(*command.split(), expect=2).output


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("replay --all", "nothing to replay matches"),
        ("replay --handler t.exakt", "there is no handler t.exakt; did you mean t.exact?"),
        ("dead retry --handler zzz", "there is no handler zzz; there are t.exact, t.plain"),
        ("dead retry --reason failure", "nothing to replay matches"),
        ("dead show 1-1", "no dead letter has the id 1-1; see bus dead list"),
        ("replay --all --name a/b", "'a/b' is not a valid name for a replay"),
    ],
)
def test_what_cannot_be_done_is_named(invoke: Invoke, command: str, says: str) -> None:
    """If the requested data does not exist, the status is 1, and the error explains what to do."""
    assert says in invoke(*command.split(), expect=1).output


@pytest.mark.parametrize("command", ["dead list", "dead purge --all", "replay --all", "dead show 1-1"])
def test_a_redis_that_is_away_is_named(invoke: Invoke, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis every command ends with one line that names its address."""
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    output = invoke(*command.split(), expect=3).output
    assert "Redis at redis://127.0.0.1:1/0 does not answer" in output
    assert "the address in REDIS_URL" in output
    assert "s3cret" not in output


def test_other_filters_under_one_name_are_refused(invoke: Invoke, bus: EventBus) -> None:
    """The name of a replay belongs to its first filters, with times as they were written."""
    bus.publish("dream.created", id="e")
    invoke("replay", "--since", "1h", "--name", "r", "--yes")
    assert "is already finished" in invoke("replay", "--since", "1h", "--name", "r").output
    assert (
        'was started with {"from": "journal", "since": "1h"}'
        in invoke("replay", "--since", "2h", "--name", "r", expect=1).output
    )
    assert "choose another name" in invoke("dead", "retry", "--since", "1h", "--name", "r", expect=1).output


def test_a_dry_run_shows_and_counts(invoke: Invoke, replays: Replays, bus: EventBus) -> None:
    """A dry run shows the first events, the total, and why some cannot be replayed; with --json it shows all."""
    for number in range(25):
        bus.publish("dream.created", id=f"e{number}")
    output = invoke("replay", "--handler", "t.exact", "--dry-run").stdout
    assert output.splitlines()[0] == "dream.created  e0  t.exact"
    assert "25 would be replayed, the first 20 are shown" in output
    assert "25 tasks would run: t.exact 25" in output
    assert "e20" not in output
    replays.park(1)
    replays.letters.add(DeadLetter.of_message("json", "", "channel", b"\x1b[2J{"))
    output = invoke("dead", "retry", "--all", "--dry-run").output
    assert "1 would be retried" in output
    assert "1 cannot be retried: event: not JSON" in output
    result = invoke("dead", "retry", "--all", "--dry-run", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["id"], row["handler"], bool(row["problem"]), row["tasks"]) for row in rows] == [
        ("n1", "t.exact", False, [{"handler": "t.exact", "succeeded": False}]),
        ("", "", True, []),
    ]
    assert "1 task would run: t.exact 1" in result.stderr
    assert not replays.ids()
    assert replays.letters.size().count == 2


def test_dead_letters_are_listed_and_shown(invoke: Invoke, replays: Replays) -> None:
    """Dead letters are a table without control characters for people, and JSON for programs."""
    event = Event(type="dream.created", id="e", payload="\x1b[31mred")
    replays.letters.add(
        DeadLetter.of_event("failure", "\x1b[31m" + "d" * 99, event, event.encode(), "t.exact", "t1", traceback="a\nb")
    )
    replays.letters.add(DeadLetter.of_message("json", "no\nJSON", "ch\x1b[0mannel", b"\xff\x1b[2J"))
    result = invoke("dead", "list")
    rows = result.stdout.splitlines()
    assert rows[0].split() == ["ID", "TIME", "REASON", "TYPE", "EVENT", "HANDLER", "DETAIL"]
    assert r"no\nJSON" in rows[1]
    assert "dream.created" in rows[2]
    assert "2 of 2 dead letters of group tests" in result.stderr
    shown = invoke("dead", "show", "e").output
    assert "t.exact" in shown
    assert "  a\n  b\n" in shown
    assert "\x1b" not in result.output + shown + invoke("dead", "list", "--json").output
    (row,) = (json.loads(line) for line in invoke("dead", "list", "--reason", "j*", "--json").stdout.splitlines())
    assert (row["reason"], row["raw"], row["size"]) == ("json", "\\xff\x1b[2J", 5)


def test_nothing_runs_again_unasked(invoke: Invoke, replays: Replays, bus: EventBus) -> None:
    """Without a terminal and without --yes a replay and a retry change nothing, and show what they would do."""
    bus.publish("dream.created", id="e")
    replays.park(1)
    Storage(replays.client, replays.settings).ledger.end(task_id_for("tests", "e", "t.exact"), Ended("", "celery", 1))
    refused = invoke("replay", "--all", "--name", "r", input="y\n", expect=2)
    for text in (
        "1 task would run: t.exact 1",
        "1 had succeeded before and would run again: all of them",
        "what they publish are new events",
        "Replay 1 event? There is no terminal for the answer; use --yes to proceed without it.",
    ):
        assert text in refused.stderr
    assert not refused.stdout
    refused = invoke("dead", "retry", "--all", "--json", expect=2)
    assert "1 task would run: t.exact 1" in refused.stderr
    assert "Retry 1 dead letter? There is no terminal" in refused.stderr
    assert (refused.stdout, replays.ids(), replays.letters.size().count) == ("", [], 1)
    assert "1 retried" in invoke("dead", "retry", "--all", "-y").stdout
    assert "1 replayed" in invoke("replay", "--id", "e", "--yes").stdout
    assert replays.ids() == ["n1", "e"]


def test_a_replay_is_confirmed_once(invoke: Invoke, replays: Replays, bus: EventBus) -> None:
    """A replay that is resumed by its name, or finished, is not confirmed again."""
    for number in range(3):
        bus.publish("dream.created", id=f"e{number}")
    filters = {"from": "journal", "type": "dream.*"}
    storage = Storage(replays.client, replays.settings)
    replay = Replay(storage, JournalSource(storage, EntryFilter(event_type="dream.*")), "r", filters)
    assert next(replay.run(10)).replayed == 1
    for _ in range(2):
        assert "3 replayed" in invoke("replay", "--type", "dream.*", "--name", "r").stdout
    assert replays.ids() == ["e0", "e1", "e2"]


def test_dead_letters_are_removed_with_yes(invoke: Invoke, replays: Replays) -> None:
    """Exactly the selected dead letters are removed; without a terminal to confirm on, --yes is required."""
    for number in range(250):
        replays.park(number)
    replays.park(250, reason="payload")
    output = invoke("dead", "purge", "--reason", "failure", input="y\n", expect=2).output
    assert "Permanently delete 250 dead letters of group tests?" in output
    assert "use --yes to proceed without it" in output
    assert replays.letters.size().count == 251
    assert "250 deleted" in invoke("dead", "purge", "--reason", "failure", "--yes").output
    assert [letter.reason for letter in replays.letters.select(EntryFilter())] == ["payload"]
    assert "0 deleted" in invoke("dead", "purge", "--reason", "failure").output

"""``bus replay`` and ``bus dead``: their options, output and errors."""

from __future__ import annotations

import json

import pytest

from bridge import Event, EventBus
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.entries import EntryFilter
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
    invoke("replay", "--since", "1h", "--name", "r")
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
    assert "e20" not in output
    replays.park(1)
    replays.letters.add(DeadLetter.of_message("json", "", "channel", b"\x1b[2J{"))
    output = invoke("dead", "retry", "--all", "--dry-run").output
    assert "1 would be replayed" in output
    assert "1 cannot be replayed: event: not JSON" in output
    rows = [json.loads(line) for line in invoke("dead", "retry", "--all", "--dry-run", "--json").stdout.splitlines()]
    assert [(row["id"], row["handler"], bool(row["problem"])) for row in rows] == [
        ("n1", "t.exact", False),
        ("", "", True),
    ]
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


def test_dead_letters_are_removed_with_force(invoke: Invoke, replays: Replays) -> None:
    """Exactly the selected dead letters are removed; without a terminal to confirm on, --force is required."""
    for number in range(250):
        replays.park(number)
    replays.park(250, reason="payload")
    output = invoke("dead", "purge", "--reason", "failure", input="y\n", expect=2).output
    assert "Permanently delete 250 dead letters of group tests?" in output
    assert "use --force to proceed without it" in output
    assert replays.letters.size().count == 251
    assert "250 deleted" in invoke("dead", "purge", "--reason", "failure", "--force").output
    assert [letter.reason for letter in replays.letters.select(EntryFilter())] == ["payload"]
    assert "0 deleted" in invoke("dead", "purge", "--reason", "failure").output

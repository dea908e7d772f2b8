"""``bus status`` with real workers, in a terminal and in a pipe."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.storage.storage import Storage
from tests.support.apps import Invoke
from tests.support.processes import Processes
from tests.support.terminal import OpenTerminal
from tests.support.waiting import eventually

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
GROUP = {
    "name", "backlog", "exact", "oldest_s", "pending", "last_ms", "in_flight", "overdue", "dead_letters",
    "dead_letters_written", "dead_letters_evicted", "subscribers", "dispatched_per_s", "alive",
}  # fmt: skip


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


def told(invoke: Invoke) -> dict[str, Any]:
    """Return the JSON output, which is one line."""
    (line,) = invoke("status", "--json").stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def table(text: str, first: str) -> list[list[str]]:
    """Return the cells of the table whose header begins with *first*; cells are two spaces apart."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    rows = lines[start + 1 :]
    return [row.split() for row in rows[: rows.index("") if "" in rows else None]]


@pytest.fixture
def busy(client: Redis, settings: BridgeSettings, bus: EventBus, keys: Keys) -> None:
    """A group in which every value is above zero, and an idle group."""
    bus.publish_many([Event(type="dream.created", id=f"e{number}") for number in range(10)])
    client.xgroup_create(keys.journal, "tests", id="0")
    client.xgroup_create(keys.journal, "idle", id="$")
    client.xreadgroup("tests", "silent", {keys.journal: ">"}, count=3)
    pair = InFlightTask("t.exact", "e", "1-1", "celery")
    Storage(client, settings).ledger.acknowledge_sent([], [pair.entry(f"t{number}") for number in range(5)])
    late = settings.model_copy(update={"redispatch_after_s": -1})
    Storage(client, late).ledger.acknowledge_sent([], [pair.entry("late")])
    Storage(client, settings).dead_letters.add(DeadLetter.of_message("json", "", "channel", b"x"))
    now_s = int(client.time()[0])
    problems, gap_ms = ["cannot", "will not"], (now_s - 7300) * 1000
    for after_s, one in (
        (
            60,
            Presence("well", "here", dispatched_per_s=2.5),
        ),  # a minute ahead, so it counts as alive until the end of the test
        (60, Presence("tired", "there", problems, gap_ms=gap_ms)),
        (60, Presence("waiting", waits="queue celery is full")),
        (-8, Presence("lost", dispatched_per_s=99.0)),
    ):
        said = f"{(now_s + after_s) * 1000} {json.dumps(asdict(one))}"
        client.hset(keys.subscribers("tests"), one.name, said)


def test_what_people_see(invoke: Invoke, busy: None, settings: BridgeSettings, terminal: OpenTerminal) -> None:
    """The bus with its settings, the backlog and failures of each group, and the state of each subscriber are shown."""
    text = invoke("status").stdout
    first, second = text.splitlines()[:2]
    assert first.startswith(f"bus      {settings.redacted_url}  Redis ")
    assert first.endswith(", appendonly no, appendfsync everysec, maxmemory 0, maxmemory-policy noeviction")
    assert second.startswith(f"journal  10 entries of {settings.channel_prefix}*, the oldest from 20")
    idle, tests = table(text, "GROUP")
    assert idle == ["idle", "0", "-", "0.0/s", "0", "0", "0", "0"]
    assert tests == ["tests", "10", tests[2], "s", "2.5/s", "6", "1", "1", "3"]
    lost, tired, waiting, well, silent = table(text, "SUBSCRIBER ")
    assert (lost[:2], lost[-3:]) == (["lost", "tests"], ["0", "-", "-"])
    assert re.fullmatch(r"gone: last heartbeat (8|9|1\d)\.\d s ago", " ".join(lost[2:-3]))
    assert tired == ["tired", "tests", "cannot;", "will", "not", "0", "0.0/s", "2", "h", "ago"]
    assert " ".join(waiting) == "waiting tests queue celery is full 0 0.0/s -"
    assert well == ["well", "tests", "ready", "0", "2.5/s", "-"]
    assert " ".join(silent) == "silent tests a consumer without heartbeats 3 - -"

    at_terminal = terminal("bus", "status", columns=80)
    assert at_terminal.wait() == 0
    lines = COLOURS.sub("", at_terminal.text).splitlines()
    assert max(map(len, lines[2:])) <= 80
    assert len(lines) <= 20
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in ("lost", "well", "silent", "tests"))
    assert "\x1b[1;31mgone: " in at_terminal.text
    assert "\x1b[31mcannot; will not" in at_terminal.text


def test_a_worker_that_is_killed(invoke: Invoke, processes: Processes) -> None:
    """A worker is ready while it runs; at most ten seconds after a SIGKILL it is shown as gone."""
    worker = processes.worker()
    eventually(
        lambda: [one["ready"] for group in told(invoke)["groups"] for one in group["subscribers"]] == [True],
        "the worker is ready",
    )
    worker.kill()
    eventually(lambda: told(invoke)["groups"][0]["alive"] == 0, "the worker is shown as gone", 10)
    text = invoke("status").stdout
    (row,) = table(text, "SUBSCRIBER ")
    assert "gone: last heartbeat" in " ".join(row)
    assert table(text, "GROUP")[0][-1] == "0"


def test_in_a_pipe(shell: Callable[..., subprocess.CompletedProcess[str]], busy: None) -> None:
    """In a pipe, the output is plain lines or JSON, and the exit status is usable in scripts."""
    run = shell("bus status | cat; bus status --json | python3 -c 'import json, sys; json.load(sys.stdin)'; echo $?")
    assert run.stderr == ""
    assert run.stdout.startswith("bus      redis://")
    assert run.stdout.endswith("\n0\n")
    assert "\x1b" not in run.stdout
    assert shell("bus check --ready", REDIS_URL="redis://127.0.0.1:1/0").returncode == 3
    assert shell("bus check --ready").returncode == 1  # there is no subscriber on this host

"""``bus status`` with real workers, in a terminal and in a pipe."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.storage.keys import Keys
from tests.support.apps import Invoke
from tests.support.processes import Processes
from tests.support.status import fill, table, told
from tests.support.terminal import OpenTerminal
from tests.support.waiting import eventually

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


@pytest.fixture
def busy(client: Redis, settings: BridgeSettings, bus: EventBus, keys: Keys) -> None:
    """A group with a backlog, tasks, dead letters and subscribers, and another group that is idle."""
    fill(client, settings, bus, keys)


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

"""``bus tail``: live and from the journal, after lost connections, and its exit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest
from redis import Redis

from bridge import EventBus
from bridge.storage.keys import Keys
from tests.support import ROOT
from tests.support.processes import Processes
from tests.support.proxy import Proxy
from tests.support.terminal import OpenTerminal
from tests.support.waiting import eventually


@pytest.fixture
def tail(processes: Processes, client: Redis):
    """Start ``bus tail`` and wait until it is subscribed."""

    def start(*arguments: str, name: str = "tail", **environment: str) -> Any:
        process = processes.celery("bus", "tail", *arguments, name=name, PYTHONWARNINGS="", **environment)

        def listens() -> bool:  # to its heartbeats and then to events; its first attempt subscribes only to events
            own = [one for one in client.client_list() if one["name"].endswith(f":{process.pid}")]
            return any(int(one["sub"]) and int(one["psub"]) for one in own)

        eventually(listens, "it is subscribed", 30)
        return process

    return start


def ids(processes: Processes, name: str = "tail") -> list[str]:
    """Return the ids of the events shown so far with --json."""
    return [json.loads(line)["id"] for line in processes.log(name).splitlines() if line.startswith("{")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_events_are_shown_as_they_come(tail, processes: Processes, bus: EventBus, number: signal.Signals) -> None:
    """Each event is one line with time, type, id and the start of the payload; a signal exits with status 0."""
    process = tail()
    bus.publish("dream.created", {"text": "x" * 500}, id="e1")
    bus.publish("dream.deleted", "\x1b[2J", id="e2")
    eventually(lambda: "e2" in processes.log("tail"), "both events are shown")
    first, second = processes.log("tail").splitlines()
    assert first.split()[1:3] == ["dream.created", "e1"]
    assert first.endswith("xxx...")
    assert second.split()[1:] == ["dream.deleted", "e2", r'"\u001b[2J"']
    process.send_signal(number)
    assert process.wait(10) == 0
    assert len(processes.log("tail").splitlines()) == 2


def test_patterns_choose(tail, processes: Processes, bus: EventBus) -> None:
    """Only events that match one of the patterns are shown, and invalid messages on other channels are not reported."""
    tail("a.*", "*.b", "--json")
    bus.client.publish(f"{bus.settings.channel_prefix}c.c", "{bad")
    for event_type in ("a.x", "c.c", "c.b", "a.b"):
        bus.publish(event_type, id=event_type)
    eventually(lambda: "a.b" in ids(processes), "the last event is shown")
    assert ids(processes) == ["a.x", "c.b", "a.b"]
    assert "invalid event" not in processes.log("tail")


def test_what_is_no_event_is_reported(tail, processes: Processes, bus: EventBus) -> None:
    """A message that is not a valid event is reported with its channel and the reason."""
    tail()
    bus.client.publish(f"{bus.settings.channel_prefix}c.c", "{bad\x1b")
    eventually(lambda: "invalid event on channel" in processes.log("tail"), "it is reported")
    assert f"{bus.settings.channel_prefix}c.c: event: not JSON" in processes.log("tail")


def test_the_journal_comes_first(tail, processes: Processes, bus: EventBus) -> None:
    """With --since, events from the journal come before live events; each is shown once, and in full with --json."""
    for number in range(250):
        bus.publish("dream.created", {"n": number}, id=f"old{number}", correlation_id="c")
    tail("--since", "1h", "--json")
    bus.publish("dream.created", id="new")
    eventually(lambda: "new" in ids(processes), "the new event is shown")
    assert ids(processes) == [*(f"old{number}" for number in range(250)), "new"]
    assert json.loads(processes.log("tail").splitlines()[8])["payload"] == {"n": 7}


def test_no_event_is_shown_twice_while_others_publish(processes: Processes, bus: EventBus) -> None:
    """Between the journal and the live events, no event is lost and none is shown twice."""
    processes.celery("bus", "tail", "--since", "1h", "--json", name="tail", PYTHONWARNINGS="")
    published: list[str] = []

    def shown_after_another() -> list[str]:
        published.append(bus.publish("dream.created").event.id)
        return ids(processes)

    eventually(shown_after_another, "the first event is shown")
    published += [bus.publish("dream.created").event.id for _ in range(50)]
    eventually(lambda: published[-1] in ids(processes), "the last event is shown")
    assert ids(processes) == published


def test_a_lost_connection_is_said(tail, processes: Processes, bus: EventBus, proxy: Proxy) -> None:
    """After a lost connection, the command reconnects and reports that it may have missed events."""
    process = tail(REDIS_URL=proxy.url)
    bus.publish("dream.created", id="before")
    eventually(
        lambda: "before" in processes.log("tail"), "it has received its own heartbeat, so a gap counts from now on"
    )
    proxy.cut()
    eventually(lambda: "events may be missing here" in processes.log("tail"), "it has reconnected")
    bus.publish("dream.created", id="after")
    eventually(lambda: "after" in processes.log("tail"), "a later event is shown")
    assert process.poll() is None


def test_it_ends_when_nobody_reads(shell) -> None:
    """If a reader such as ``| head`` closes the pipe, the command exits at once, even if no further event arrives."""
    run = shell("bus publish a.b 1 --id e >/dev/null 2>&1; bus tail --since 1h | head -n 1; echo ${PIPESTATUS[0]}")
    line, status = run.stdout.splitlines()
    assert line.split()[1:] == ["a.b", "e", "1"]
    assert status == "0"
    assert {line.partition(" ")[0] for line in run.stderr.splitlines()} <= {"from", "live:"}


def test_a_terminal_has_colours_and_the_day(terminal: OpenTerminal, bus: EventBus) -> None:
    """In a terminal, output is coloured, lines are no wider than the terminal, and the date is shown above them."""
    bus.publish("dream.created", "x" * 190, id="e")
    shown = terminal("bus", "tail", "--since", "1h", columns=80)
    shown.shows("dream.created")
    shown.shows("\r\n\x1b[2m")
    shown.process.send_signal(signal.SIGINT)
    assert shown.wait() == 0
    assert "x" * 80 not in shown.text
    assert "Traceback" not in shown.text


def test_memory_is_bounded_while_nobody_reads(processes: Processes, bus: EventBus, client: Redis) -> None:
    """While its reader is stopped, the command blocks instead of using memory; a signal still ends it."""
    command = [sys.executable, "-m", "celery", "-A", "tests.app", "bus", "tail", "--json"]
    environment = os.environ | processes.environment | {"PYTHONWARNINGS": ""}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        channel = Keys(bus.settings.channel_prefix).heartbeat
        eventually(lambda: dict(client.pubsub_numsub(channel))[channel.encode()] == 1, "it is subscribed")
        before = psutil.Process(process.pid).memory_info().rss
        for _ in range(60):
            bus.publish("dream.created", "x" * 900_000)
        eventually(lambda: psutil.Process(process.pid).memory_info().rss > before + 5_000_000, "its output is blocked")
        assert psutil.Process(process.pid).memory_info().rss < before + 60_000_000
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0

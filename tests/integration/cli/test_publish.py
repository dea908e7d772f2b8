"""``bus publish`` and ``bus get`` in pipes and in a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.support import ROOT
from tests.support.processes import Processes
from tests.support.terminal import OpenTerminal
from tests.support.waiting import eventually


def journal(client: Redis, settings: BridgeSettings) -> list[dict[str, object]]:
    """Return the events in the journal, oldest first."""
    return [json.loads(fields[b"event"]) for _, fields in client.xrange(Keys(settings.channel_prefix).journal)]


class Slow:
    """A ``bus publish`` that reads from a program that writes a line from time to time."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "celery", "-A", "tests.app", "bus", "publish", "dream.created", "-"]
        pipe = subprocess.PIPE
        environment = os.environ | environment | {"PYTHONWARNINGS": ""}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)

    def write(self, text: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def says(self, timeout_s: float = 10) -> str:
        """Wait for it to exit; return its standard error."""
        try:
            return self.process.communicate(timeout=timeout_s)[1].decode()
        finally:
            self.process.kill()


def test_a_line_is_published_as_it_arrives(processes: Processes, client: Redis, settings: BridgeSettings) -> None:
    """A line is published before the next one arrives; Ctrl-C ends the command with status 130 and its progress."""
    slow = Slow(processes.environment)
    for number in range(2):
        slow.write(b"%d\n" % number)
        eventually(lambda number=number: len(journal(client, settings)) == number + 1, "the event is published")
        assert slow.process.stdout
        assert slow.process.stdout.readline(), "the command has printed its id"
    # The line counts as done shortly after its id was printed.
    program = psutil.Process(slow.process.pid)
    eventually(lambda: program.status() == psutil.STATUS_SLEEPING, "the command waits for the next line")
    slow.process.send_signal(signal.SIGINT)
    assert "interrupted; published up to line 2" in slow.says()
    assert slow.process.returncode == 130


def test_a_server_lost_on_the_way_is_named(
    processes: Processes, own_server: RedisServer, settings: BridgeSettings
) -> None:
    """If the server is lost, the status is 3, and the error reports which lines are done."""
    slow = Slow(processes.environment | {"REDIS_URL": own_server.url})
    slow.write(b"1\n2\n")
    with Redis.from_url(own_server.url) as client:
        eventually(lambda: len(journal(client, settings)) == 2, "the first lines are published")
    own_server.kill()
    slow.write(b"3\n")
    said = slow.says()
    assert slow.process.returncode == 3
    assert f"Redis at {own_server.url}" in said
    assert "Published up to line 2, and possibly some of the next 500." in said


def test_a_file_at_a_terminal_has_a_bar(terminal: OpenTerminal, tmp_path: Path) -> None:
    """Publishing from a file shows a percentage, because the size is known; the ids are printed above it."""
    (tmp_path / "lines").write_text("1\n" * 5_000)
    publishing = terminal("bus", "publish", "dream.created", f"@{tmp_path}/lines")
    publishing.shows("publishing")
    publishing.shows("%")
    assert publishing.wait() == 0
    assert "5000 published" in publishing.text.splitlines()[-1]


def test_the_keyboard_is_asked_and_ctrl_c_ends_it(terminal: OpenTerminal) -> None:
    """In a terminal, the command reports that it reads from the keyboard; Ctrl-C ends it with status 130."""
    publishing = terminal("bus", "publish", "dream.created", "-")
    publishing.shows("reading JSON from the keyboard; Ctrl-D ends the input")
    publishing.process.send_signal(signal.SIGINT)
    assert publishing.wait() == 130
    assert "interrupted" in publishing.text
    typing = terminal("bus", "publish", "dream.created", "-", "--id", "typed")
    typing.shows("Ctrl-D ends the input")
    typing.type('{"text": 1}\n\x04')
    assert typing.wait() == 0
    assert "typed" in typing.text.splitlines()


def test_an_event_at_a_terminal_is_indented(terminal: OpenTerminal, bus: EventBus) -> None:
    """In a terminal, text is shown unescaped, except for control characters."""
    bus.publish("dream.created", {"text": "Träume [bold]\x9b2J"}, id="e")
    shown = terminal("bus", "get", "e", NO_COLOR="1")
    assert shown.wait() == 0
    assert r"Träume [bold]\x9b2J" in shown.text
    assert '  "id"' in re.sub(r"\x1b\[\d*m", "", shown.text)

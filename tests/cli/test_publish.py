"""``bus publish`` and ``bus get``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.cli.conftest import OpenTerminal, Say
from tests.conftest import ROOT, Processes, eventually


def journal(client: Redis, settings: BridgeSettings) -> list[dict[str, object]]:
    """The events in the journal, oldest first."""
    return [json.loads(fields[b"event"]) for _, fields in client.xrange(Keys(settings.channel_prefix).journal)]


def test_one_event(say: Say, bus: EventBus) -> None:
    """Prints its id; type, payload and ids are as asked."""
    command = ("publish", "dream.created", '{"text": "I could fly."}', "--id", "e", "--correlation-id", "c")
    assert say(*command).stdout == "e\n"
    event = bus.get_event("e")
    assert event is not None
    assert (event.type, event.payload, event.correlation_id) == ("dream.created", {"text": "I could fly."}, "c")
    assert event.source == "tests"


def test_without_a_payload_it_is_null(say: Say, bus: EventBus) -> None:
    """An id is made up, and printed."""
    event = bus.get_event(say("publish", "dream.created").stdout.strip())
    assert event is not None
    assert event.payload is None


def test_a_repetition_is_said_and_a_conflict_refused(say: Say) -> None:
    """The same event again is no error; another one with its id ends with status 1."""
    say("publish", "dream.created", "1", "--id", "e")
    again = say("publish", "dream.created", "1", "--id", "e")
    assert (again.stdout, again.stderr) == ("e\n", "e was published before; nothing happened\n")
    other = say("publish", "dream.created", "2", "--id", "e", expect=1)
    assert other.stdout == ""
    assert "an event with another type or payload has the id e; see bus get e" in other.stderr
    told = [json.loads(say("publish", "a.b", value, "--id", "x", "--json").stdout) for value in "11"]
    told.append(json.loads(say("publish", "a.b", "2", "--id", "x", "--json", expect=1).stdout))
    assert [(one["id"], one["type"], one["duplicate"], one["conflict"]) for one in told] == [
        ("x", "a.b", False, False),
        ("x", "a.b", True, False),
        ("x", "a.b", True, True),
    ]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("publish", "a b"), "'a b' is not words of"),
        (("publish", "a.b", "hello"), "A text is written with its quotes: '\"text\"'"),
        (("publish", "a.b", "[NaN]"), "NaN is not JSON"),
        (("publish", "a.b", "1", "--id", "a b"), "'a b' is not"),
        (("publish", "a.b", "@/nowhere"), "/nowhere: No such file or directory"),
    ],
)
def test_wrong_usage_is_named(say: Say, command: tuple[str, ...], says: str) -> None:
    """A mistake ends with status 2 before anything is published."""
    assert says in say(*command, expect=2).output


def test_a_payload_a_line(say: Say, client: Redis, settings: BridgeSettings, tmp_path: Path) -> None:
    """If the first line is a whole value, each line is a payload; from standard input and from a file, CRLF as well."""
    lines = b'{"n": 1}\r\n\n[2]\n"3"\n4'
    result = say("publish", "dream.created", "-", input=lines)
    events = journal(client, settings)
    assert [event["payload"] for event in events] == [{"n": 1}, [2], "3", 4]
    assert result.stdout.split() == [event["id"] for event in events]
    assert result.stderr == "4 published\n"
    (tmp_path / "lines").write_bytes(lines)
    told = say("publish", "dream.created", f"@{tmp_path}/lines", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in told] == [event["id"] for event in journal(client, settings)[4:]]


def test_one_document(say: Say, client: Redis, settings: BridgeSettings, tmp_path: Path) -> None:
    """If the first line is no whole value, all of it is one payload, which may have an id."""
    (tmp_path / "dream.json").write_text('{\n  "text": "I\\nflew"\n}\n')
    assert say("publish", "dream.created", f"@{tmp_path}/dream.json", "--id", "d").stdout == "d\n"
    assert [event["payload"] for event in journal(client, settings)] == [{"text": "I\nflew"}]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", (), "the input is empty: nothing was published"),
        ("\n \n", (), "the input is empty"),
        ("{\nbad", (), "nor is its first line a JSON value"),
        ("1\n2", ("--id", "e"), "with --id it is one document"),
        ("[\n" + "1,\n" * 500_000, (), "nor one document of 1048576 bytes at most"),
    ],
)
def test_input_that_is_nothing(say: Say, client: Redis, settings: BridgeSettings, text, options, says) -> None:
    """It is named, with status 1, and nothing was published."""
    assert says in say("publish", "dream.created", "-", *options, input=text, expect=1).stderr
    assert journal(client, settings) == []


def test_a_bad_line_stops_no_other(say: Say, client: Redis, settings: BridgeSettings) -> None:
    """Each is reported with its number: no JSON, no JSON of everybody, too long to read, too long as an event."""
    most = settings.max_event_bytes
    bad = {2: "{oops", 3: "1e999", 5: '"' + "x" * (most + 9) + '"', 7: '"' + "y" * (most - 10) + '"'}
    lines = [bad.get(number, str(number)) for number in range(1, 9)]
    result = say("publish", "dream.created", "-", input="\n".join(lines), expect=1)
    assert [event["payload"] for event in journal(client, settings)] == [1, 4, 6, 8]
    assert [line.partition(":")[0] for line in result.stderr.splitlines()[:-1]] == [f"line {number}" for number in bad]
    assert result.stderr.splitlines()[-1] == "4 published, not published: 4"


class Slow:
    """A ``bus publish`` behind a program that writes a line now and then."""

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
        """What it said on standard error, once it has ended."""
        try:
            return self.process.communicate(timeout=timeout_s)[1].decode()
        finally:
            self.process.kill()


def test_a_line_is_published_as_it_arrives(processes: Processes, client: Redis, settings: BridgeSettings) -> None:
    """Behind a slow program none waits for the next; Ctrl-C ends it with status 130 and says how far it came."""
    slow = Slow(processes.environment)
    for number in range(2):
        slow.write(b"%d\n" % number)
        eventually(lambda number=number: len(journal(client, settings)) == number + 1, "it is published")
        assert slow.process.stdout
        assert slow.process.stdout.readline(), "it knows that it is"
    # The line counts as done a moment after its id is printed.
    program = psutil.Process(slow.process.pid)
    eventually(lambda: program.status() == psutil.STATUS_SLEEPING, "it waits for the next line")
    slow.process.send_signal(signal.SIGINT)
    assert "interrupted; lines up to 2 are done" in slow.says()
    assert slow.process.returncode == 130


def test_a_server_lost_on_the_way_is_named(
    processes: Processes, own_server: RedisServer, settings: BridgeSettings
) -> None:
    """Status 3, and which lines are done."""
    slow = Slow(processes.environment | {"REDIS_URL": own_server.url})
    slow.write(b"1\n2\n")
    with Redis.from_url(own_server.url) as client:
        eventually(lambda: len(journal(client, settings)) == 2, "the first lines")
    own_server.kill()
    slow.write(b"3\n")
    said = slow.says()
    assert slow.process.returncode == 3
    assert f"Redis at {own_server.url} says" in said
    assert "Lines up to 2 are done, of the next 500 some may be." in said


def test_a_file_at_a_terminal_has_a_bar(terminal: OpenTerminal, tmp_path: Path) -> None:
    """Its size is known, so there is a percentage; the ids are above it."""
    (tmp_path / "lines").write_text("1\n" * 5_000)
    publishing = terminal("bus", "publish", "dream.created", f"@{tmp_path}/lines")
    publishing.shows("publishing")
    publishing.shows("%")
    assert publishing.wait() == 0
    assert "5000 published" in publishing.text.splitlines()[-1]


def test_the_keyboard_is_asked_and_ctrl_c_ends_it(terminal: OpenTerminal) -> None:
    """At a terminal it says that it waits; status 130 is that of an interruption."""
    publishing = terminal("bus", "publish", "dream.created", "-")
    publishing.shows("reading JSON from the keyboard; Ctrl-D ends it")
    publishing.process.send_signal(signal.SIGINT)
    assert publishing.wait() == 130
    assert "interrupted" in publishing.text
    typing = terminal("bus", "publish", "dream.created", "-", "--id", "typed")
    typing.shows("Ctrl-D ends it")
    typing.type('{"text": 1}\n\x04')
    assert typing.wait() == 0
    assert "typed" in typing.text.splitlines()


# get


def test_an_event_is_one_line_in_a_pipe(say: Say, bus: EventBus) -> None:
    """And with --json; nothing in it commands a terminal."""
    bus.publish("dream.created", {"text": "\x9b2J", "n": 1}, id="e")
    (line,) = say("get", "e").stdout.splitlines()
    assert json.loads(line)["payload"] == {"text": "\x9b2J", "n": 1}
    assert "\x9b" not in line
    assert say("get", "e", "--json").stdout.strip() == line


def test_an_event_whose_key_is_gone_comes_from_the_journal(
    say: Say, bus: EventBus, client: Redis, settings: BridgeSettings
) -> None:
    """Keys may be evicted."""
    bus.publish("dream.created", 7, id="e")
    client.delete(Keys(settings.channel_prefix).event("e"))
    assert json.loads(say("get", "e").stdout)["payload"] == 7


def test_an_event_that_is_not_there_is_named(say: Say, settings: BridgeSettings) -> None:
    """Status 1, where it was looked for, and where to look on."""
    output = say("get", "e", expect=1).output
    assert f"there is no event e below {settings.channel_prefix} at {settings.redacted_url}" in output
    assert "bus dead list --id e" in output


def test_an_event_at_a_terminal_is_indented(terminal: OpenTerminal, bus: EventBus) -> None:
    """As letters, but for what would command the terminal."""
    bus.publish("dream.created", {"text": "Träume [bold]\x9b2J"}, id="e")
    shown = terminal("bus", "get", "e", NO_COLOR="1")
    assert shown.wait() == 0
    assert r"Träume [bold]\x9b2J" in shown.text
    assert '  "id"' in re.sub(r"\x1b\[\d*m", "", shown.text)

"""``bus status``: how the groups get on, told within seconds."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.keys import Keys
from bridge.storage.ledger import InFlightTask, Ledger
from bridge.storage.presence import Presence, PresenceStore
from bridge.subscriber.monitoring import health
from bridge.subscriber.monitoring import reporter as monitoring
from bridge.testing.redis_server import RedisServer
from tests.cli.conftest import OpenTerminal, Say
from tests.conftest import Processes, Start, eventually
from tests.faults.proxy import Proxy

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SUBSCRIBER = {
    "name", "host", "problems", "waits", "dispatched_per_s", "gap_ms", "metrics", "seen_s", "alive", "ready",
}  # fmt: skip
GROUP = {
    "name", "backlog", "exact", "oldest_s", "pending", "last_ms", "in_flight", "overdue", "dead_letters",
    "dead_letters_written", "dead_letters_evicted", "subscribers", "dispatched_per_s", "alive",
}  # fmt: skip


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscribers in this process say how they are, and find it out, many times a second."""
    monkeypatch.setattr(monitoring, "HEARTBEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(health, "_KEEP_BROKER_S", 0.1)


def told(say: Say) -> dict[str, Any]:
    """What is told to programs, in one line."""
    (line,) = say("status", "--json").stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def subscriber(say: Say) -> dict[str, Any]:
    """What is told to programs of the only one, once it has said something."""

    def subscribers() -> list[dict[str, Any]]:
        (group,) = told(say)["groups"]
        return list(group["subscribers"])

    (one,) = eventually(subscribers, "it says that it lives")
    return dict(one)


def table(text: str, first: str) -> list[list[str]]:
    """The rows below the header that begins with *first*, up to an empty line; cells are two spaces apart."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    rows = lines[start + 1 :]
    return [row.split() for row in rows[: rows.index("") if "" in rows else None]]


@pytest.fixture
def busy(client: Redis, settings: BridgeSettings, bus: EventBus, keys: Keys) -> None:
    """A group with something of everything, and another one that has nothing to do."""
    bus.publish_many([Event(type="dream.created", id=f"e{number}") for number in range(10)])
    client.xgroup_create(keys.journal, "tests", id="0")
    client.xgroup_create(keys.journal, "idle", id="$")
    client.xreadgroup("tests", "silent", {keys.journal: ">"}, count=3)
    pair = InFlightTask("t.exact", "e", "1-1", "celery")
    Ledger(client, settings).sent([], [pair.listed(f"t{number}") for number in range(5)])
    late = settings.model_copy(update={"redispatch_after_s": -1})
    Ledger(client, late).sent([], [pair.listed("late")])
    DeadLetters(client, settings).add(DeadLetter.of_message("json", "", "channel", b"x"))
    now_s = int(client.time()[0])
    problems, gap_ms = ["cannot", "will not"], (now_s - 7300) * 1000
    for after_s, one in (
        (60, Presence("well", "here", dispatched_per_s=2.5)),  # a minute ahead: it lives as long as the test
        (60, Presence("tired", "there", problems, gap_ms=gap_ms)),
        (60, Presence("waiting", waits="queue celery is full")),
        (-8, Presence("lost", dispatched_per_s=99.0)),
    ):
        said = f"{(now_s + after_s) * 1000} {json.dumps(asdict(one))}"
        client.hset(keys.subscribers("tests"), one.name, said)


def test_what_people_see(say: Say, busy: None, settings: BridgeSettings, terminal: OpenTerminal) -> None:
    """Where the bus is and how safe, what waits and failed by group, and every subscriber with its state."""
    text = say("status").stdout
    first, second = text.splitlines()[:2]
    assert first.startswith(f"bus      {settings.redacted_url}  Redis ")
    assert first.endswith(", appendonly no, appendfsync everysec, maxmemory 0, maxmemory-policy noeviction")
    assert second.startswith(f"journal  10 entries of {settings.channel_prefix}*, the oldest of 20")
    idle, tests = table(text, "GROUP")
    assert idle == ["idle", "0", "-", "0.0/s", "0", "0", "0", "0"]
    assert tests == ["tests", "10", tests[2], "s", "2.5/s", "6", "1", "1", "3"]
    lost, tired, waiting, well, silent = table(text, "SUBSCRIBER ")
    assert (lost[:2], lost[-3:]) == (["lost", "tests"], ["0", "-", "-"])
    assert re.fullmatch(r"gone: last heard of (8|9|1\d)\.\d s ago", " ".join(lost[2:-3]))
    assert tired == ["tired", "tests", "cannot;", "will", "not", "0", "0.0/s", "2", "h", "ago"]
    assert " ".join(waiting) == "waiting tests queue celery is full 0 0.0/s -"
    assert well == ["well", "tests", "ready", "0", "2.5/s", "-"]
    assert " ".join(silent) == "silent tests a consumer that says nothing of itself 3 - -"

    at_terminal = terminal("bus", "status", columns=80)
    assert at_terminal.wait() == 0
    lines = COLOURS.sub("", at_terminal.text).splitlines()
    assert max(map(len, lines[2:])) <= 80
    assert len(lines) <= 20
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in ("lost", "well", "silent", "tests"))
    assert "\x1b[1;31mgone: " in at_terminal.text
    assert "\x1b[31mcannot; will not" in at_terminal.text


def test_what_programs_get(
    say: Say, busy: None, client: Redis, keys: Keys, settings: BridgeSettings, server: RedisServer
) -> None:
    """One object: the clock and settings of the server, the journal, and every group with its subscribers."""
    found = told(say)
    assert set(found) == {"at_ms", "group", "server", "journal", "groups"}
    now_ms = client.time()[0] * 1000
    assert now_ms - 10_000 < found["at_ms"] < now_ms + 2000
    assert found["group"] == "tests"
    wanted = {"appendonly": "no", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
    assert wanted.items() <= found["server"].items()
    (first, _), *_, (last, _) = client.xrange(keys.journal)
    assert found["journal"] == {"entries": 10, "first_ms": int(first[:13]), "last_ms": int(last[:13])}
    idle, tests = found["groups"]
    assert set(idle) == set(tests) == GROUP
    assert (idle["name"], idle["backlog"], idle["oldest_s"], idle["alive"], idle["pending"]) == ("idle", 0, None, 0, {})
    numbers = [
        tests[name] for name in ("backlog", "in_flight", "overdue", "dead_letters", "dead_letters_written", "alive")
    ]
    assert numbers == [10, 6, 1, 1, 1, 3]
    assert tests["pending"] == {"silent": 3}
    assert tests["oldest_s"] == (found["at_ms"] - int(first[:13])) / 1000
    assert (tests["exact"], tests["dispatched_per_s"]) == (True, 2.5)
    assert all(set(subscriber) == SUBSCRIBER for subscriber in tests["subscribers"])
    states = {one["name"]: (one["alive"], one["ready"], one["problems"], one["waits"]) for one in tests["subscribers"]}
    assert states == {
        "lost": (False, False, [], ""),
        "tired": (True, False, ["cannot", "will not"], ""),
        "waiting": (True, True, [], "queue celery is full"),
        "well": (True, True, [], ""),
    }


def test_a_bus_that_nobody_has_used(say: Say) -> None:
    """No journal and no group are no error, and said."""
    lines = say("status").stdout.splitlines()
    assert lines[1].startswith("journal  0 entries of test:")
    assert lines[2:] == ["group    tests is not there: no subscriber of this application has run here yet"]
    found = told(say)
    assert (found["groups"], found["journal"]) == ([], {"entries": 0, "first_ms": 0, "last_ms": 0})


def test_a_group_of_others_only(say: Say, client: Redis, bus: EventBus, keys: Keys) -> None:
    """They are shown, and that ours is missing."""
    bus.publish("a.b")
    client.xgroup_create(keys.journal, "others", id="0")
    text = say("status").stdout
    assert "group    tests is not there" in text
    assert [row[:2] for row in table(text, "GROUP")] == [["others", "1"]]


# With real subscribers


def test_a_queue_that_is_full(say: Say, start: Start, often: None, bus: EventBus, client: Redis, prefix: str) -> None:
    """The backlog grows, the subscriber says what it waits for, and is ready; emptied, it goes on."""
    start("one", max_queue_length=5, batch_size=5)
    bus.publish_many([Event(type="dream.created") for _ in range(40)])
    eventually(lambda: subscriber(say)["waits"] and subscriber(say)["ready"], "it says that it waits", 10)
    found = told(say)["groups"][0]
    assert 20 <= found["backlog"] <= 35
    assert found["in_flight"] == 40 - found["backlog"]
    assert found["oldest_s"] > 0
    (row,) = table(say("status").stdout, "SUBSCRIBER ")
    assert "queue celery" in " ".join(row)

    def worked_off() -> bool:
        client.delete(f"broker:{prefix}celery")
        return bool(told(say)["groups"][0]["backlog"] == 0)

    eventually(worked_off, "it has gone on")


def test_a_worker_that_is_killed(say: Say, processes: Processes) -> None:
    """It is ready while it lives; ten seconds after its death it is known to be gone."""
    worker = processes.worker()
    eventually(lambda: [one["ready"] for group in told(say)["groups"] for one in group["subscribers"]] == [True], "up")
    worker.kill()
    eventually(lambda: told(say)["groups"][0]["alive"] == 0, "it is gone", 10)
    text = say("status").stdout
    (row,) = table(text, "SUBSCRIBER ")
    assert "gone: last heard of" in " ".join(row)
    assert table(text, "GROUP")[0][-1] == "0"


def test_a_subscriber_without_its_broker(say: Say, start: Start, often: None, proxy: Proxy, far_app: Celery) -> None:
    """It lives, and says why it is not ready."""
    start("one", app=far_app)
    proxy.refuse()
    eventually(lambda: "broker: " in " ".join(subscriber(say)["problems"]), "it says so", 10)
    assert (subscriber(say)["alive"], subscriber(say)["ready"]) == (True, False)
    assert "broker: " in say("status").stdout


# What the server tells, and what it does not


def test_a_user_who_may_not_ask_the_server(say: Say, own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without INFO and CONFIG everything else is told, and those settings are unknown."""
    with Redis.from_url(own_server.url) as admin:
        admin.execute_command("ACL SETUSER bus on >s3cret ~* &* +@all -info -config")
    monkeypatch.setenv("REDIS_URL", own_server.url.replace("//", "//bus:s3cret@"))
    text = say("status").stdout
    assert "  Redis of unknown version, appendonly unknown, appendfsync unknown, maxmemory unknown" in text
    assert "journal  0 entries" in text
    assert "s3cret" not in text
    assert told(say)["server"] == {}


def test_a_durable_server_is_told(say: Say, own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own settings, not those one hopes for."""
    monkeypatch.setenv("REDIS_URL", own_server.url)
    with Redis.from_url(own_server.url) as admin:
        admin.config_set("maxmemory", 100_000_000)
        admin.config_set("maxmemory-policy", "allkeys-lru")
    text = say("status").stdout
    assert "appendonly yes, appendfsync always, maxmemory 100000000, maxmemory-policy allkeys-lru" in text


def test_what_others_wrote_commands_nothing(say: Say, client: Redis, keys: Keys, settings: BridgeSettings) -> None:
    """Names of groups, consumers and subscribers are anybody's; rubbish among the presences is left out."""
    evil = "\x1b[2J[red]\r\x07"
    client.xgroup_create(keys.journal, evil, id="0", mkstream=True)
    client.xgroup_createconsumer(keys.journal, evil, evil)
    theirs = settings.model_copy(update={"group": evil})
    PresenceStore(client, theirs).say(Presence(f"one {evil}", problems=[evil], waits=evil))
    for rubbish in ("", "x", "1 {", "1 []", '1 {"name": 7}', "x {}", "99999999999999999999 {}"):
        client.hset(keys.subscribers(evil), f"r{rubbish}", rubbish)
    text = say("status").stdout
    assert not {"\x1b", "\r", "\x07"} & set(text)
    assert text.count(r"\x1b[2J[red]\r\x07") == 6
    assert say("status", "--json").stdout.isascii()


def test_a_bus_that_is_cut(say: Say, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told with status 3 at once, when it refuses and when it hangs; back again, so is its state."""
    monkeypatch.setenv("REDIS_URL", proxy.url)
    assert told(say)["groups"] == []
    for cut in (proxy.refuse, proxy.blackhole):
        cut()
        begun_s = time.monotonic()
        assert say("status", "--json", expect=3).stdout == ""
        assert time.monotonic() - begun_s < 5
        proxy.heal()
    assert told(say)["groups"] == []


def test_in_a_pipe(shell: Callable[..., subprocess.CompletedProcess[str]], busy: None) -> None:
    """Real processes: plain lines, JSON for another program, and exit codes for scripts."""
    run = shell("bus status | cat; bus status --json | python3 -c 'import json, sys; json.load(sys.stdin)'; echo $?")
    assert run.stderr == ""
    assert run.stdout.startswith("bus      redis://")
    assert run.stdout.endswith("\n0\n")
    assert "\x1b" not in run.stdout
    assert shell("bus check --ready", REDIS_URL="redis://127.0.0.1:1/0").returncode == 3
    assert shell("bus check --ready").returncode == 1  # none of this host

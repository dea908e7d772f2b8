"""``bus check``: each problem is found, reported with advice, and visible in the exit code."""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from celery import Celery
from click.testing import Result
from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.handlers.handler import registry
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.storage.queue_sample import QueueHistory, QueueRecord, QueueSample, QueueStatus
from bridge.storage.storage import Storage
from bridge.subscriber import checks
from bridge.testing.redis_server import RedisServer
from tests.support.apps import Invoke, StartSubscriber
from tests.support.check import BEFORE_START, CHECKS, levelled, passed, wrong
from tests.support.cli import invoker, on_bus
from tests.support.proxy import Proxy
from tests.support.waiting import eventually


@pytest.fixture
def url(own_server: RedisServer) -> str:
    """The URL of a durable Redis: bus, broker and result backend of these tests."""
    return own_server.url


@pytest.fixture
def admin(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as client:
        yield client


@pytest.fixture
def settings(url: str, prefix: str) -> BridgeSettings:
    return BridgeSettings.load(redis_url=url, channel_prefix=prefix, group="tests")


@pytest.fixture
def app(user_app: Celery, url: str) -> Celery:
    """The handlers of tests/chains.py, on that Redis."""
    user_app.conf.broker_url = user_app.conf.result_backend = url
    return user_app


@pytest.fixture
def check(app: Celery, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run ``bus check ...`` in this process."""
    on_bus(settings, monkeypatch)
    monkeypatch.setattr("bridge.cli.checks._WORKERS_S", 0.1)  # for the tests without workers
    return invoker(app, "check")


# Without a worker


def rest(result: Result) -> list[tuple[str, str]]:
    """Return all problems except the missing subscribers and workers."""
    return [(about, problem) for about, problem in wrong(result) if about not in ("group tests", "workers")]


@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        ("~* &* -xautoclaim", ["XAUTOCLAIM {<p>}journal"]),
        ("~* &* -script|exists -exec", ["SCRIPT EXISTS", "EXEC"]),
        ("~* &{<p>}*", ["PUBLISH <p>bridge-check", "PSUBSCRIBE <p>*"]),
        ("~* &<p>*", ["PUBLISH {<p>}heartbeat", "SUBSCRIBE {<p>}heartbeat"]),
        ("~{<p>}* &*", ["GET <p>event:bridge-check", "SET <p>event:bridge-check"]),
    ],
)
def test_missing_rights(
    check: Invoke, admin: Redis, url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, rules: str, missing: list[str]
) -> None:
    """Each missing permission is reported with its command and key or channel, and with advice on granting it."""
    admin.execute_command(f"ACL SETUSER shop on >s3cret +@all {rules.replace('<p>', prefix)}")
    monkeypatch.setenv("REDIS_URL", url.replace("//", "//shop:s3cret@"))
    result = check(expect=1)
    found = [problem.split(": ")[0] for about, problem in rest(result) if about == "user shop has no permission"]
    assert len(found) == len(rest(result))
    assert {text.replace("<p>", prefix) for text in missing} <= set(found)
    assert "      -> run ACL SETUSER with the line that bus acl worker prints" in result.stdout
    assert "s3cret" not in result.output


def test_a_user_who_may_nearly_nothing(check: Invoke, admin: Redis, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing permissions are reported; if the check cannot continue without one, it ends with status 3."""
    admin.execute_command("ACL SETUSER shop on >pw ~* +@read +@connection -client|setname")
    monkeypatch.setenv("REDIS_URL", url.replace("//", "//shop:pw@"))
    for ends_at, missing in ((1, "client|setname"), (2, "time")):  # no client can connect without the first
        rows = [json.loads(line) for line in check("--json", expect=3).stdout.splitlines()]
        assert [row["check"] for row in rows[1:]] == CHECKS[1 : ends_at + 1]
        assert f"no permissions to run the '{missing}' command" in rows[-1]["findings"][0]["problem"]
        names = {"setting", "problem", "advice", "command", "level"}
        assert all(set(finding) == names for row in rows for finding in row["findings"])
        admin.execute_command("ACL SETUSER shop +client|setname")
    assert re.search(r"'(script\|load|evalsha)'", rows[1]["findings"][0]["problem"])  # which verify the others


def test_a_bus_that_forgets(check: Invoke, admin: Redis) -> None:
    """Server settings that lose events are reported."""
    admin.config_set("appendonly", "no")
    admin.config_set("maxmemory-policy", "allkeys-lru")
    admin.config_set("maxmemory", 100_000_000)
    ((first, why), (second, _)) = rest(check(expect=1))
    assert (first, second) == ("appendonly of the bus", "maxmemory-policy of the bus")
    assert why.startswith("no: ")


def test_before_the_first_start(check: Invoke, app: Celery, admin: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first worker, a Redis without persistence causes a warning, with a command to paste: no error."""
    monkeypatch.setattr(sys.modules[__name__], "shop", app, raising=False)
    app.conf.broker_transport_options = {"socket_timeout": 10.0}
    assert [text.partition(" at ")[0] for text in passed(check("--before-start"))] == ["bus", *BEFORE_START[1:]]
    admin.config_set("appendonly", "no")
    app.conf.broker_transport_options = {}
    result = check("--before-start")
    timeout = "broker_transport_options['socket_timeout']"
    assert [row[:2] for row in levelled(result)] == [("warn", "appendonly of the bus"), ("warn", timeout)]
    commands = [line.strip() for line in result.stdout.splitlines() if line.startswith("         ")]
    port = admin.connection_pool.connection_kwargs["port"]
    assert commands[0] == f"redis-cli -p {port} CONFIG SET appendonly yes"
    exec(commands[1], {"app": app})
    admin.execute_command(*commands[0].split()[3:])
    assert levelled(check("--before-start")) == []
    rows = [json.loads(line) for line in check("--json", expect=1).stdout.splitlines()]
    assert [finding["command"] for row in rows for finding in row["findings"]] == [
        f"celery -A {__name__}:shop worker"
    ] * 2


def test_what_must_be_corrected_before_the_first_start(check: Invoke, app: Celery, admin: Redis) -> None:
    """A problem that loses events, or a handler that cannot run, ends with status 1 even before the first start."""
    admin.config_set("maxmemory", 100_000_000)
    admin.config_set("maxmemory-policy", "allkeys-lru")
    registry.clear()
    rows = [json.loads(line) for line in check("--before-start", "--json", expect=1).stdout.splitlines()]
    failed = [finding["setting"] for row in rows for finding in row["findings"] if finding["level"] == "fail"]
    assert failed == ["maxmemory-policy of the bus", "handlers"]
    assert {row["check"] for row in rows if row["level"] == "fail"} == {BEFORE_START[4], "handlers"}
    assert "give one of the two" in check("--before-start", "--ready", expect=2).stderr


@pytest.mark.parametrize(("off_s", "says"), [(60, "ahead of"), (-60, "behind"), (3, ""), (-3, "")])
def test_a_clock_that_is_off(
    check: Invoke, client: Redis, monkeypatch: pytest.MonkeyPatch, off_s: float, says: str
) -> None:
    """A local clock that differs from Redis by a minute is reported; a few seconds are accepted."""
    clock = time.time
    monkeypatch.setattr(checks, "time", SimpleNamespace(time=lambda: clock() + off_s))
    found = [f"{finding.setting}: {finding.problem}" for finding in checks.check_clock(client)]
    assert found == ([f"clock of this machine: 60 s {says} that of Redis: expiry and ages are wrong"] if says else [])
    if off_s == 60:
        assert [about for about, _ in rest(check(expect=1))] == ["clock of this machine"]


@pytest.mark.parametrize("address", ["amqp://guest:s3cret@127.0.0.1:1//", "redis://:s3cret@127.0.0.1:1/0", "hangs"])
def test_a_broker_that_is_away(check: Invoke, app: Celery, proxy: Proxy, address: str) -> None:
    """An unavailable broker ends the check soon with status 3; checks that need the broker are skipped."""
    if address == "hangs":
        proxy.blackhole()
        address = proxy.url
    app.conf.broker_url = address
    begun_s = time.monotonic()
    result = check(expect=3)
    assert time.monotonic() - begun_s < 8
    assert [about for about, _ in wrong(result)] == ["group tests", "broker"]
    assert passed(result)[1:] == CHECKS[1:3]
    assert "s3cret" not in result.output


def test_no_broker(check: Invoke, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a broker, the check says that Celery uses RabbitMQ on this machine, and what to set."""
    app.conf.broker_url = None
    app.conf.broker_port = 1  # where nothing listens
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    text = "broker_url is not set, so Celery uses RabbitMQ on this machine"
    assert text in dict(wrong(check(expect=3)))["broker"]


def test_a_bus_that_is_away(check: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unavailable bus is an error of one line with status 3, with and without --ready."""
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    for arguments in ([], ["--ready"], ["--ready", "--json"]):
        result = check(*arguments, expect=3)
        assert result.stdout == ""
        assert result.stderr.startswith("Error: Redis at redis://127.0.0.1:1/0 does not answer: ")


def test_a_bus_that_is_lost_meanwhile(check: Invoke, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Redis stops replying during a check, that check fails, and the status is 3."""
    proxy.cut_after(b"$4\r\nTIME\r\n", 0)
    monkeypatch.setenv("REDIS_URL", proxy.url)
    *_, last = [json.loads(line) for line in check("--json", expect=3).stdout.splitlines()]
    assert (last["check"], last["level"]) == ("permissions of the bus user", "fail")
    assert "does not answer" in last["findings"][0]["problem"]


def test_no_handlers(check: Invoke) -> None:
    """Without registered handlers the check reports the missing handlers."""
    registry.clear()
    assert ("handlers", "none registered") in wrong(check(expect=1))


def test_subscribers(
    check: Invoke, start_subscriber: StartSubscriber, app: Celery, url: str, admin: Redis, bus: EventBus
) -> None:
    """A missing group, a group without subscribers and an unhealthy subscriber are reported; a healthy one is not."""
    assert wrong(check(expect=1))[0] == (
        "group tests",
        "does not exist: no subscriber has run yet, or the group was deleted",
    )
    bus.publish("a.b")
    admin.xgroup_create(Keys(bus.settings.channel_prefix).journal, "tests", id="0")
    assert wrong(check(expect=1))[0] == ("group tests", "no live subscriber; backlog: 1 events")
    start_subscriber("one", app=app, redis_url=url)
    presences = Storage(admin, bus.settings).presence
    eventually(lambda: [one.ready for one in presences.all()] == [True], "the subscriber is ready")
    presences.report(Presence("two", problems=["cannot", "will not"]))
    assert wrong(check(expect=1))[0] == ("two", "cannot; will not")
    presences.leave(Presence("two"))
    assert wrong(check(expect=1)) == [("workers", "none replied")]


def test_queues_that_do_not_move(check: Invoke, admin: Redis, settings: BridgeSettings) -> None:
    """Queues in which messages wait, and that nobody takes from or that do not move, are reported."""
    storage, now_ms = Storage(admin, settings), int(admin.time()[0]) * 1000
    admin.xgroup_create(storage.keys.journal, "tests", mkstream=True)
    queues = (
        QueueStatus("idle", 0, 0.0, 0, 0.0),
        QueueStatus("nobody", 6, 65.0, 0, 60.0, problem="no_consumer"),
        QueueStatus("stalled", 1, 400.0, 2, 390.0, problem="stalled"),
    )
    records = tuple(QueueRecord(queue, QueueHistory()) for queue in queues)
    storage.queue_samples.write(QueueSample(now_ms, records))
    result = check(expect=1)
    assert [one for one in wrong(result) if one[0].startswith("queue ")] == [
        ("queue nobody", "6 messages wait, and no worker takes tasks from it"),
        ("queue stalled", "1 message waits, and none has left it for 390 s"),
    ]
    assert "worker -Q nobody\n" in result.stdout


def test_readiness_of_this_host(check: Invoke, admin: Redis, app: Celery, settings: BridgeSettings) -> None:
    """All live subscribers of this host, and no others, must be ready; the broker is not contacted."""
    app.conf.broker_url = "amqp://127.0.0.1:1"
    here, presences = socket.gethostname(), Storage(admin, settings).presence
    presences.report(Presence("far", "elsewhere"))
    gone = f"{int(admin.time()[0] - 7) * 1000} {json.dumps({'name': 'gone', 'host': here})}"
    admin.hset(Keys(settings.channel_prefix).subscribers("tests"), "gone", gone)
    assert wrong(check("--ready", expect=1)) == [(f"subscriber on {here}", "no live subscriber")]
    presences.report(Presence("one", here))
    assert check("--ready").stdout == f"ok    subscribers on {here}\n"
    presences.report(Presence("far", "elsewhere", problems=["cannot"]))
    check("--ready")
    presences.report(Presence("two", here, problems=["cannot", "will not"]))
    assert wrong(check("--ready", expect=1)) == [("two", "cannot; will not")]
    (row,) = [json.loads(line) for line in check("--ready", "--json", expect=1).stdout.splitlines()]
    finding = {
        "setting": "two",
        "problem": "cannot; will not",
        "advice": "see bus check",
        "command": "",
        "level": "fail",
    }
    assert row == {"check": f"subscribers on {here}", "level": "fail", "findings": [finding]}


def test_readiness_is_cheap(check: Invoke, admin: Redis, settings: BridgeSettings) -> None:
    """Readiness takes one look-up, whatever the bus contains."""
    Storage(admin, settings).presence.report(Presence("one", socket.gethostname()))
    heard: list[str] = []
    with admin.monitor() as monitor:
        check("--ready")
        admin.echo("end")
        while "ECHO end" not in heard:
            heard.append(monitor.next_command()["command"])
    asked = [command.split()[0] for command in heard if not command.startswith(("CLIENT ", "HELLO ", "ECHO "))]
    assert asked == ["PING", "TIME", "HGETALL"]

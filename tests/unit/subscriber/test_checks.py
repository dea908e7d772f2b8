"""Start-up checks against real servers: each setting that loses events is reported, and no other."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from celery import Celery, Task
from redis import Redis

from bridge import BridgeSettings, EventTask
from bridge.subscriber import checks
from bridge.subscriber.finding import Finding
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.apps import StartSubscriber
from tests.support.waiting import eventually

SAFE = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")
FULL = ("--maxmemory", "100mb")

#: Options of the broker's transport without any findings.
GOOD_OPTIONS = {"socket_timeout": 10.0, "visibility_timeout": 3600}

Serve = Callable[..., RedisServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers with these arguments; all are stopped after the test."""
    with ExitStack() as servers:
        yield lambda *arguments: servers.enter_context(RedisServer(arguments=arguments))


def make_app(broker: str, **options: Any) -> Celery:
    app = Celery("tests", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = GOOD_OPTIONS | options
    app.finalize()
    return app


def tasks_of(app: Celery) -> list[Any]:
    return [app.tasks[name] for name in HANDLERS]


def make_task(app: Celery, name: str, **options: Any) -> Any:
    """Create a task in this application only."""
    return app.task(name=name, shared=False, **{"acks_late": True, "reject_on_worker_lost": True, **options})(make_task)


def check(bus: str, app: Celery | str | None = None, tasks: Sequence[Any] = ()) -> dict[str, Finding]:
    """Run the checks, by default with the bus as broker; return the findings by the setting they name."""
    app = app if isinstance(app, Celery) else make_app(app or bus)
    found = checks.check_settings(BridgeSettings.load(redis_url=bus), app, tasks)
    for finding in found:
        command = f": {finding.command}" if finding.command else ""
        assert str(finding) == f"{finding.setting}: {finding.problem}; {finding.advice}{command}"
        assert finding.advice
    named = {finding.setting: finding for finding in found}
    assert len(named) == len(found), "each setting is named once"
    return named


def test_a_safe_set_up_has_no_findings(serve: Serve) -> None:
    """A durable server that refuses writes when it is full has no findings, nor have the defaults of handlers."""
    server = serve(*SAFE, *FULL)
    app = make_app(server.url)
    assert check(server.url, app, tasks_of(app)) == {}


@pytest.mark.parametrize(
    ("arguments", "setting", "problem"),
    [
        (("--save", ""), "appendonly of the bus", "without snapshots either"),
        (("--save", "3600 1"), "appendonly of the bus", "since its last snapshot"),
        ((*SAFE, "--appendfsync", "no"), "appendfsync of the bus", "power cut"),
        ((*SAFE, *FULL, "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy of the bus", "allkeys-lru"),
        ((*SAFE, *FULL, "--maxmemory-policy", "volatile-ttl"), "maxmemory-policy of the bus", "volatile-ttl"),
    ],
)
def test_a_server_that_loses_data(serve: Serve, arguments: Sequence[str], setting: str, problem: str) -> None:
    """Weak persistence and an evicting policy are each reported, once for a server that is both bus and broker."""
    found = check(serve(*arguments).url)
    assert set(found) == {setting}
    assert problem in found[setting].problem


@pytest.mark.parametrize("appendfsync", ["everysec", "always"])
def test_both_usual_ways_to_append_are_fine(serve: Serve, appendfsync: str) -> None:
    """Losing up to two seconds of events is the accepted cost of everysec and not reported."""
    assert check(serve(*SAFE, "--appendfsync", appendfsync).url) == {}


def test_an_evicting_policy_without_a_limit_does_nothing(serve: Serve) -> None:
    """A server without maxmemory evicts nothing, so its policy is not reported."""
    assert check(serve("--appendonly", "yes", "--maxmemory-policy", "allkeys-lru").url) == {}


def test_bus_and_broker_are_told_apart(serve: Serve) -> None:
    """Two servers are two sets of findings."""
    bus = serve("--save", "")
    broker = serve("--appendonly", "yes", *FULL, "--maxmemory-policy", "allkeys-lfu")
    assert set(check(bus.url, broker.url)) == {"appendonly of the bus", "maxmemory-policy of the broker"}
    assert set(check(broker.url, bus.url)) == {"maxmemory-policy of the bus", "appendonly of the broker"}


def test_an_old_server(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version below the required minimum is reported; this test requires one that does not exist yet."""
    server = serve(*SAFE)
    monkeypatch.setattr("bridge.subscriber.server_checks._MIN_VERSION", (99, 0))
    found = check(server.url)
    assert set(found) == {"version of the bus"}
    with Redis.from_url(server.url) as client:
        assert found["version of the bus"].problem.startswith(client.info()["redis_version"])
    assert "99.0" in found["version of the bus"].advice


MESSAGES = {"Request": "a:b", "Strategy": "a:b"}
TASK_CLASSES: dict[str, tuple[type[Any], set[str]]] = {
    "ordinary": (type("Mine", (Task,), {"acks_late": False}), set()),
    "messages": (type("Mine", (Task,), MESSAGES), {f"{name} of task_cls" for name in MESSAGES}),
    "handlers": (type("Mine", (EventTask,), {}), {"task_cls"}),
}


@pytest.mark.parametrize(("task_class", "settings"), TASK_CLASSES.values(), ids=TASK_CLASSES)
def test_task_class_of_the_application(serve: Serve, task_class: type[Any], settings: set[str]) -> None:
    """What handlers do not take from it, and what other tasks cannot have, is reported."""
    app = Celery("tests", broker=(server := serve(*SAFE)).url, set_as_current=False, task_cls=task_class)
    app.conf.broker_transport_options = GOOD_OPTIONS
    assert set(check(server.url, app, tasks_of(app))) == settings


#: Commands a user has no permission for, and the settings that are unknown then.
DENIED = {
    "-config": {"appendfsync"},
    "-info": {"version"},
    "-config -info": {"version", "appendonly", "appendfsync", "maxmemory-policy"},
}


@pytest.mark.parametrize("denied", DENIED)
def test_what_may_not_be_seen_is_unknown(serve: Serve, denied: str) -> None:
    """A setting that INFO and CONFIG cannot read is reported as unknown, with the missing permission."""
    server = serve(*SAFE)
    with Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "bridge", "on", ">pw", "~*", "&*", "+@all", *denied.split())
    found = check(server.url.replace("//", "//bridge:pw@"), server.url)
    bus = {setting: finding for setting, finding in found.items() if setting.endswith("of the bus")}
    assert set(bus) == {f"{setting} of the bus" for setting in DENIED[denied]}
    for finding in bus.values():
        assert "unknown" in finding.problem
        assert "permission" in finding.problem
        assert "+config|get" in finding.advice
    assert set(found) == set(bus), "the user of the broker has all permissions"


def test_a_hosted_server_without_config(serve: Serve) -> None:
    """Without the CONFIG command, INFO is used as far as it goes; disabled persistence is still reported."""
    found = check(serve("--rename-command", "CONFIG", "").url)
    assert set(found) == {"appendonly of the bus"}
    assert "unknown" in found["appendonly of the bus"].problem  # whether there are snapshots
    found = check(serve(*SAFE, "--rename-command", "CONFIG", "").url)
    assert set(found) == {"appendfsync of the bus"}
    assert "unknown command" in found["appendfsync of the bus"].problem


UNKNOWN_BROKER = {"appendonly of the broker", "appendfsync of the broker", "maxmemory-policy of the broker"}


def test_servers_that_hang_are_not_waited_for(serve: Serve) -> None:
    """With both servers frozen, all settings are reported as unknown within a few seconds."""
    bus, broker = serve(*SAFE), serve(*SAFE)
    for server in (bus, broker):
        os.kill(server.pid, signal.SIGSTOP)
    try:
        before = time.monotonic()
        found = check(bus.url, broker.url)
        assert time.monotonic() - before < 4
    finally:
        for server in (bus, broker):
            os.kill(server.pid, signal.SIGCONT)
    unknown_bus = {name.replace("broker", "bus") for name in UNKNOWN_BROKER}
    assert set(found) == UNKNOWN_BROKER | unknown_bus | {"version of the bus"}
    assert all("does not answer" in finding.problem for finding in found.values())


def test_a_broker_that_is_away_or_refuses_us(serve: Serve) -> None:
    """If the broker refuses connections or the password, its settings are unknown, and no password is shown."""
    bus, broker = serve(*SAFE), serve(*SAFE)
    with Redis.from_url(broker.url) as client:
        client.config_set("requirepass", "right")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening, so it refuses connections
        away = f"redis://127.0.0.1:{unused.getsockname()[1]}/0"
        for url in (away, broker.url.replace("//", "//:wrong@")):
            found = check(bus.url, url)
            assert set(found) == UNKNOWN_BROKER
            assert "wrong" not in "".join(map(str, found.values()))


def test_the_broker_transport_of_redis(serve: Serve) -> None:
    """A worker without a socket timeout, and a task longer than the visibility timeout, are reported."""
    server = serve(*SAFE)
    app = make_app(server.url, socket_timeout=None, visibility_timeout=30)
    found = check(server.url, app, tasks_of(app))  # t.limited may run for 30 s
    names = {f"broker_transport_options['{name}']" for name in ("socket_timeout", "visibility_timeout")}
    assert set(found) == names
    assert "t.limited may run for 30 s" in found["broker_transport_options['visibility_timeout']"].problem
    enough = make_app(server.url, visibility_timeout=31)
    assert check(server.url, enough, tasks_of(enough)) == {}
    assert check(server.url, make_app(server.url, visibility_timeout=1)) == {}, "without handlers there is no minimum"


def test_the_visibility_timeout_when_none_is_set(serve: Serve) -> None:
    """Without a configured visibility timeout, kombu's default of one hour counts."""
    server = serve(*SAFE)
    app = make_app(server.url)
    del app.conf.broker_transport_options["visibility_timeout"]
    limited = make_task(app, "limited", time_limit=3600)
    found = check(server.url, app, [limited])
    assert set(found) == {"broker_transport_options['visibility_timeout']"}
    assert "3600 s" in found["broker_transport_options['visibility_timeout']"].problem


def test_the_broker_transport_of_rabbitmq(serve: Serve) -> None:
    """Publishing tasks without confirms is reported, without a connection to the broker."""
    server = serve(*SAFE)
    broker = "amqp://guest@rabbitmq.invalid//"
    assert set(check(server.url, broker)) == {"broker_transport_options['confirm_publish']"}
    assert check(server.url, make_app(broker, confirm_publish=True)) == {}


def test_handlers_that_acknowledge_early(serve: Serve) -> None:
    """A task that is lost with its worker is reported, together with the option that causes it."""
    server = serve(*SAFE)
    app = make_app(server.url)
    early = make_task(app, "early", acks_late=False, reject_on_worker_lost=False)
    careless = make_task(app, "careless", reject_on_worker_lost=False)
    found = check(server.url, app, [early, careless, *tasks_of(app)])
    assert set(found) == {"acks_late of task early", "reject_on_worker_lost of task careless"}


def test_a_subscriber_warns_when_the_bus_has_answered(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each finding is one warning in the log and one text in ``celery inspect stats``."""
    register_handlers("t.all")
    server = serve("--save", "")
    subscriber = start_subscriber(app=make_app(server.url), redis_url=server.url)
    (text,) = eventually(lambda: subscriber.info()["warnings"], "the checks have run")
    assert text.startswith("appendonly of the bus: no")
    eventually(lambda: text in caplog.messages, "the finding is logged")


def test_nothing_waits_for_the_checks(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a check hangs, the subscriber becomes ready and can stop."""
    register_handlers("t.all")
    begun, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> list[Finding]:
        begun.set()
        go_on.wait(30)
        return []

    monkeypatch.setattr("bridge.subscriber.subscriber.check_settings", hang)
    try:
        subscriber = start_subscriber()  # waits until it is ready
        assert begun.wait(10)
        subscriber.stop()
        assert [thread for thread in threading.enumerate() if thread.name == "bridge-check"]
    finally:
        go_on.set()


def test_an_address_that_redis_url_hides(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in the configuration that is not used, because REDIS_URL takes precedence, is reported."""
    app = make_app(server.url)
    app.conf.bridge_redis_url = "redis://elsewhere:6379/0"
    assert "bridge_redis_url" not in check(server.url, app)
    monkeypatch.setenv("REDIS_URL", server.url)
    assert "bridge_redis_url" in check(server.url, app)

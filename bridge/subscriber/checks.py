"""Start-up checks: settings of both servers, of Celery and of the handlers that can lose events.

``appendfsync everysec`` is not reported: a power cut loses up to 2 s of events, which most users accept for its speed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celery import Celery, Task
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from bridge.broker import probe_connection
from bridge.bus import Admission
from bridge.config import BridgeSettings, hidden_address
from bridge.errors import InvalidEvent
from bridge.events import is_literal
from bridge.handlers import EventTask
from bridge.redis import connect, servers_of

#: The first Redis with XAUTOCLAIM.
_MIN_VERSION = (6, 2)
#: Longest wait for a server to accept a connection, and to answer. It is asked once.
_TIMEOUT_S = 1.0
#: A larger difference between clocks makes expiry, countdown and the ages of events wrong.
_CLOCK_SKEW_S = 5.0
#: The default of kombu for a Redis broker.
_DEFAULT_VISIBILITY_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Finding:
    """A setting that can lose events, or one that could not be read.

    Arguments:
        setting: Its name, and where it is set: ``appendonly of the bus``.
        problem: Its value, and the consequence.
        advice: What to do.
    """

    setting: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}; {self.advice}"


def check_settings(settings: BridgeSettings, app: Celery, tasks: Sequence[Task[..., Any]]) -> list[Finding]:
    """Check both servers and the configuration. Takes a few seconds at most, even if a server does not answer.

    Arguments:
        settings: The address of the bus.
        app: Its configuration and its broker are checked.
        tasks: The tasks of the handlers.
    """
    bus = _bus_servers(settings)
    hidden = hidden_address(app, settings.url, settings.redacted_url)
    findings = [*([Finding(*hidden)] if hidden else []), *_kind(settings, bus[0])]
    findings += [finding for one in bus for finding in (*_version(one), *_durability(one), *_memory(one))]
    with probe_connection(app) as connection:
        driver = connection.transport.driver_type
        if driver == "redis":
            server = _broker_server(connection)
            if server.run_id is None or server.run_id not in [one.run_id for one in bus]:  # unless one server is both
                findings += [*_durability(server), *_memory(server)]
    options = app.conf.broker_transport_options
    if driver == "redis":
        findings += _redis_transport(options, tasks)
    elif driver == "amqp":
        findings += _amqp_transport(options)
    return [*findings, *_task_class(cast("Any", app).Task), *_acknowledgement(tasks)]


def refused_handlers(settings: BridgeSettings, patterns: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Find event types that have handlers but are excluded by ``accepted_types`` or ``rejected_types``.

    Arguments:
        patterns: Name of a task to the patterns of its handler. Globs are skipped.
    """
    admission, found = Admission(settings), []
    for name, wanted in patterns.items():
        for pattern in wanted:
            try:
                if is_literal(pattern):
                    admission.check_type(pattern)
            except InvalidEvent as error:
                advice = "accept the type, or remove the handler"
                found.append(Finding(f"handler {name}", f"receives nothing: {error.detail}", advice))
    return found


def check_clock(client: Redis) -> list[Finding]:
    """Compare the clock of the Redis server with that of this machine.

    Raises:
        RedisError: The server does not answer.
    """
    before_s = time.time()
    seconds, microseconds = client.time()
    skew_s = seconds + microseconds / 1e6 - (before_s + time.time()) / 2
    if abs(skew_s) <= _CLOCK_SKEW_S:
        return []
    problem = f"{abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} that of Redis: expiry and ages are wrong"
    return [Finding("clock of this machine", problem, "synchronise both with NTP")]


@dataclass(frozen=True)
class Server:
    """The settings of one Redis server.

    Arguments:
        name: Its role, ``bus`` or ``broker``.
        holds: What it stores, and so what it can lose.
        settings: By name, as in CONFIG, and also ``version``, ``mode`` and ``role``.
        missing_because: Why some are missing, to follow the word "Redis".
        run_id: Unique for each start of a server.
    """

    name: str
    holds: str
    settings: Mapping[str, str]
    missing_because: str
    run_id: str | None = None

    def finding(self, setting: str, problem: str, advice: str) -> Finding:
        return Finding(f"{setting} of the {self.name}", problem, advice)

    def unknown(self, setting: str, wanted: str) -> Finding:
        advice = f"ensure that it is {wanted}, or allow this user +info and +config|get"
        return self.finding(setting, f"unknown, because Redis {self.missing_because}", advice)


def _bus_servers(settings: BridgeSettings) -> list[Server]:
    """Read the settings of each server of the bus."""
    try:
        with connect(settings, _TIMEOUT_S) as client:
            return [server_of(one, f"bus at {place}" if place else "bus") for place, one in servers_of(client)]
    except (RedisError, OSError) as error:
        return [Server("bus", "events", {}, f"does not answer ({error})")]


def _broker_server(connection: Any) -> Server:  # kombu's; its stubs know neither fractions of seconds nor client
    name, holds = "broker", "task messages"
    try:
        connection.ensure_connection(timeout=_TIMEOUT_S, interval_start=0.1, interval_step=0.1)
        return server_of(connection.default_channel.client, name, holds)
    except (RedisError, OperationalError, OSError) as error:
        return Server(name, holds, {}, f"does not answer ({error})")


def server_of(client: Redis, name: str, holds: str = "events") -> Server:
    """Read the settings of a server, in one round trip. Settings that it does not report are missing.

    Arguments:
        name: Its role, ``bus`` or ``broker``.
        holds: What it stores, and so what it can lose.

    Raises:
        RedisError: It does not answer.
    """
    with client.pipeline(transaction=False) as pipe:  # either may be denied, and a hosted server may not have CONFIG
        pipe.info()
        for pattern in ("append*", "maxmemory*", "save"):
            pipe.config_get(pattern)
        replies = pipe.execute(raise_on_error=False)
    refusals = [str(reply) for reply in replies if isinstance(reply, Exception)]
    info, *parts = [{} if isinstance(reply, Exception) else reply for reply in replies]
    reported = {
        "version": info.get("redis_version"),
        "mode": info.get("redis_mode"),
        "role": info.get("role"),
        "appendonly": {0: "no", 1: "yes"}.get(info.get("aof_enabled")),
        "maxmemory": info.get("maxmemory"),
        "maxmemory-policy": info.get("maxmemory_policy"),
    }
    for part in parts:
        reported |= part
    known = {setting: str(value) for setting, value in reported.items() if value is not None}
    missing_because = f"replied: {refusals[0]}" if refusals else "does not report it"
    return Server(name, holds, known, missing_because, info.get("run_id"))


def _kind(settings: BridgeSettings, server: Server) -> Iterator[Finding]:
    """Check that the server is of the kind that the address names."""
    mode, scheme = server.settings.get("mode"), settings.url.partition("://")[0]
    if mode == "cluster" and settings.address.kind != "cluster":
        problem = "cluster: with this address only the keys of one of its servers can be used"
        yield server.finding("mode", problem, f"write {scheme}+cluster instead of {scheme} in the address")
    elif mode == "sentinel":
        yield server.finding("mode", "sentinel: it stores no keys", f"write {scheme}+sentinel://HOSTS/SERVICE")
    elif server.settings.get("role") == "slave":
        yield server.finding("role", "replica: it is read-only", "use the address of the primary, or of the Sentinels")


def _version(server: Server) -> Iterator[Finding]:
    version, wanted = server.settings.get("version"), ".".join(map(str, _MIN_VERSION))
    if version is None:
        yield server.unknown("version", f"{wanted} or later")
    elif tuple(map(int, re.findall(r"\d+", version)[:2])) < _MIN_VERSION:
        yield server.finding("version", f"{version} lacks required commands", f"upgrade to {wanted} or later")


def _durability(server: Server) -> Iterator[Finding]:
    appendonly, appendfsync = server.settings.get("appendonly"), server.settings.get("appendfsync")
    if appendonly == "no":
        yield server.finding("appendonly", f"no: {_loss_without_aof(server)}", "set it to yes")
        return
    if appendonly is None:
        yield server.unknown("appendonly", "yes")
    if appendfsync is None:
        yield server.unknown("appendfsync", "everysec or always")
    elif appendfsync == "no":
        problem = f"no: a power cut loses the {server.holds} of the last 30 s or so"
        yield server.finding("appendfsync", problem, "set it to everysec (loses up to 2 s) or always")


def _loss_without_aof(server: Server) -> str:
    snapshots = server.settings.get("save")
    if snapshots == "":
        return f"without snapshots either, a crash of Redis loses all {server.holds}"
    doubt = " (whether it saves any is unknown)" if snapshots is None else ""
    return f"a crash of Redis loses the {server.holds} since its last snapshot{doubt}"


def _memory(server: Server) -> Iterator[Finding]:
    limit, policy = server.settings.get("maxmemory"), server.settings.get("maxmemory-policy")
    if limit == "0" or policy == "noeviction":
        return
    if policy is None:
        yield server.unknown("maxmemory-policy", "noeviction")
    else:
        problem = f"{policy}: when its memory is full, Redis evicts keys that the bridge needs"
        yield server.finding("maxmemory-policy", problem, "set it to noeviction")


def _redis_transport(options: Mapping[str, Any], tasks: Sequence[Task[..., Any]]) -> Iterator[Finding]:
    if options.get("socket_timeout") is None:
        problem = "not set: a broker that hangs blocks a worker indefinitely"
        yield Finding("broker_transport_options['socket_timeout']", problem, "set it, for example to 10.0")
    visibility_timeout_s = options.get("visibility_timeout", _DEFAULT_VISIBILITY_TIMEOUT_S)
    limit_s, name = max(((task.time_limit or 0, task.name) for task in tasks), default=(0, ""))
    if limit_s >= visibility_timeout_s:
        problem = f"{visibility_timeout_s} s: {name} may run for {limit_s} s, and is redelivered while it runs"
        yield Finding("broker_transport_options['visibility_timeout']", problem, "set it above the longest time_limit")


def _amqp_transport(options: Mapping[str, Any]) -> Iterator[Finding]:
    if not options.get("confirm_publish"):
        # The bridge itself always uses publisher confirms, see ``bridge.broker``.
        problem = "off: messages that tasks send, or that Celery sends to retry them, can be lost"
        yield Finding("broker_transport_options['confirm_publish']", problem, "set it to True")


def _task_class(task_class: type[Any]) -> Iterator[Finding]:
    """Check the class that all tasks of the application have, those of handlers included."""
    if issubclass(task_class, EventTask):
        problem = "an EventTask: all tasks that are no handlers fail, also Celery's own such as celery.chord_unlock"
        yield Finding("task_cls", problem, "derive it from celery.Task; handlers get the rest from @on_event")
        return
    for name in ("Request", "Strategy"):
        if getattr(task_class, name) != getattr(Task, name):
            problem = "not used for handlers, which end by that of the bridge when their process is killed"
            yield Finding(f"{name} of task_cls", problem, "use hooks of the task or Celery's signals for handlers")


def _acknowledgement(tasks: Sequence[Task[..., Any]]) -> Iterator[Finding]:
    for task in tasks:
        for setting in ("acks_late", "reject_on_worker_lost"):
            if not getattr(task, setting):
                problem = "off: if its worker crashes, the task is sent again only after bridge_redispatch_after_s"
                yield Finding(f"{setting} of task {task.name}", problem, "leave it on")
                break  # reject_on_worker_lost has no effect without acks_late

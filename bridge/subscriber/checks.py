"""Start-up checks: settings of the two servers, of Celery and of the handlers with which events are lost.

``appendfsync everysec`` is none of them: it costs up to 2 s of events in a power cut, which most accept for its speed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery, Task
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from bridge.broker import probe_connection
from bridge.bus import Admission
from bridge.config import BridgeSettings
from bridge.errors import InvalidEvent
from bridge.events import is_literal
from bridge.redis import connect, servers_of

#: The first Redis with XAUTOCLAIM.
_MIN_VERSION = (6, 2)
#: Longest wait for a server, to connect and to answer; it is asked once.
_TIMEOUT_S = 1.0
#: Clocks that differ by more make expiry, countdown and the times of events misleading.
_CLOCK_SKEW_S = 5.0
#: That of kombu, for a Redis broker.
_DEFAULT_VISIBILITY_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Finding:
    """A setting with which events are lost, or one that cannot be seen.

    Arguments:
        setting: Its name, and whose it is: ``appendonly of the bus``.
        problem: Its value and what that costs.
        advice: What to do about it.
    """

    setting: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}; {self.advice}"


def check_settings(settings: BridgeSettings, app: Celery, tasks: Sequence[Task[..., Any]]) -> list[Finding]:
    """Ask both servers and read the configuration. Takes some seconds at most, also when a server is away or hangs.

    Arguments:
        settings: Where the bus is.
        app: Its configuration, and its broker.
        tasks: Those of the handlers.
    """
    bus = _ask_bus(settings)
    findings = list(_kind(settings, bus[0]))
    findings += [finding for one in bus for finding in (*_version(one), *_durability(one), *_memory(one))]
    with probe_connection(app) as connection:
        driver = connection.transport.driver_type
        if driver == "redis":
            server = _ask_broker(connection)
            if server.run_id is None or server.run_id not in [one.run_id for one in bus]:  # else one server is both
                findings += [*_durability(server), *_memory(server)]
    options = app.conf.broker_transport_options
    if driver == "redis":
        findings += _redis_transport(options, tasks)
    elif driver == "amqp":
        findings += _amqp_transport(options)
    return [*findings, *_acknowledgement(tasks)]


def refused_handlers(settings: BridgeSettings, patterns: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Look for types that handlers want and ``accepted_types`` and ``rejected_types`` keep out. It may be meant, for a
    while.

    Arguments:
        patterns: Name of a task to those of its handler. Of globs nobody can tell.
    """
    admission, found = Admission(settings), []
    for name, wanted in patterns.items():
        for pattern in wanted:
            try:
                if is_literal(pattern):
                    admission.check_type(pattern)
            except InvalidEvent as error:
                advice = "let the type in, or take the handler out"
                found.append(Finding(f"handler {name}", f"gets nothing: {error.detail}", advice))
    return found


def check_clock(client: Redis) -> list[Finding]:
    """Compare the clock of the server with that of this machine.

    Raises:
        RedisError: It does not answer.
    """
    before_s = time.time()
    seconds, microseconds = client.time()
    skew_s = seconds + microseconds / 1e6 - (before_s + time.time()) / 2
    if abs(skew_s) <= _CLOCK_SKEW_S:
        return []
    problem = f"{abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} that of Redis: expiry and ages mislead"
    return [Finding("clock of this machine", problem, "let NTP set both")]


@dataclass(frozen=True)
class Server:
    """What a server tells about itself.

    Arguments:
        name: What it is to us.
        holds: What it loses when it loses something.
        settings: By name, as CONFIG has them, and ``version``.
        silence: Why some are missing.
        run_id: Differs from server to server.
    """

    name: str
    holds: str
    settings: Mapping[str, str]
    silence: str
    run_id: str | None = None

    def finding(self, setting: str, problem: str, advice: str) -> Finding:
        return Finding(f"{setting} of the {self.name}", problem, advice)

    def unknown(self, setting: str, wanted: str) -> Finding:
        advice = f"see to it that it is {wanted}, or allow this user +info and +config|get"
        return self.finding(setting, f"unknown, for Redis {self.silence}", advice)


def _ask_bus(settings: BridgeSettings) -> list[Server]:
    """Ask each server that holds something of the bus."""
    try:
        with connect(settings, _TIMEOUT_S) as client:
            return [server_of(one, f"bus at {place}" if place else "bus") for place, one in servers_of(client)]
    except (RedisError, OSError) as error:
        return [Server("bus", "events", {}, f"does not answer ({error})")]


def _ask_broker(connection: Any) -> Server:  # kombu.Connection; its stubs know neither fractions of seconds nor client
    name, holds = "broker", "task messages"
    try:
        connection.ensure_connection(timeout=_TIMEOUT_S, interval_start=0.1, interval_step=0.1)
        return server_of(connection.default_channel.client, name, holds)
    except (RedisError, OperationalError, OSError) as error:
        return Server(name, holds, {}, f"does not answer ({error})")


def server_of(client: Redis, name: str, holds: str = "events") -> Server:
    """Ask a server about itself, in one round trip. What it does not tell is missing.

    Arguments:
        name: What it is to us, e.g. ``bus``.
        holds: What it loses when it loses something.

    Raises:
        RedisError: It does not answer.
    """
    with client.pipeline(transaction=False) as pipe:  # either may be forbidden; a hosted server may have no CONFIG
        pipe.info()
        for pattern in ("append*", "maxmemory*", "save"):
            pipe.config_get(pattern)
        replies = pipe.execute(raise_on_error=False)
    refusals = [str(reply) for reply in replies if isinstance(reply, Exception)]
    info, *parts = [{} if isinstance(reply, Exception) else reply for reply in replies]
    told = {
        "version": info.get("redis_version"),
        "mode": info.get("redis_mode"),
        "role": info.get("role"),
        "appendonly": {0: "no", 1: "yes"}.get(info.get("aof_enabled")),
        "maxmemory": info.get("maxmemory"),
        "maxmemory-policy": info.get("maxmemory_policy"),
    }
    for part in parts:
        told |= part
    known = {setting: str(value) for setting, value in told.items() if value is not None}
    silence = f"says: {refusals[0]}" if refusals else "does not tell"
    return Server(name, holds, known, silence, info.get("run_id"))


def _kind(settings: BridgeSettings, server: Server) -> Iterator[Finding]:
    """Look whether what is at the address is what the address says."""
    mode, scheme = server.settings.get("mode"), settings.url.partition("://")[0]
    if mode == "cluster" and settings.address.kind != "cluster":
        problem = "cluster: this address reaches the keys of one of its servers alone"
        yield server.finding("mode", problem, f"write {scheme}+cluster for {scheme} in it")
    elif mode == "sentinel":
        yield server.finding("mode", "sentinel: it has no keys", f"write {scheme}+sentinel://HOSTS/SERVICE")
    elif server.settings.get("role") == "slave":
        yield server.finding("role", "replica: it takes no writes", "point the address at the primary, or at Sentinels")


def _version(server: Server) -> Iterator[Finding]:
    version, wanted = server.settings.get("version"), ".".join(map(str, _MIN_VERSION))
    if version is None:
        yield server.unknown("version", f"{wanted} or later")
    elif tuple(map(int, re.findall(r"\d+", version)[:2])) < _MIN_VERSION:
        yield server.finding("version", f"{version} lacks commands that the bridge needs", f"use {wanted} or later")


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
        problem = f"no: a power cut loses the {server.holds} of the last half minute"
        yield server.finding("appendfsync", problem, "set it to everysec (loses up to 2 s) or always")


def _loss_without_aof(server: Server) -> str:
    snapshots = server.settings.get("save")
    if snapshots == "":
        return f"without snapshots either, a crash of Redis loses all {server.holds}"
    doubt = " (whether it takes any is unknown)" if snapshots is None else ""
    return f"a crash of Redis loses the {server.holds} since its last snapshot{doubt}"


def _memory(server: Server) -> Iterator[Finding]:
    limit, policy = server.settings.get("maxmemory"), server.settings.get("maxmemory-policy")
    if limit == "0" or policy == "noeviction":
        return
    if policy is None:
        yield server.unknown("maxmemory-policy", "noeviction")
    else:
        problem = f"{policy}: when its memory is full, Redis drops keys that the bridge relies on"
        yield server.finding("maxmemory-policy", problem, "set it to noeviction")


def _redis_transport(options: Mapping[str, Any], tasks: Sequence[Task[..., Any]]) -> Iterator[Finding]:
    if options.get("socket_timeout") is None:
        problem = "none: a worker waits for ever for a broker that hangs"
        yield Finding("broker_transport_options['socket_timeout']", problem, "set it, e.g. to 10.0")
    visibility_timeout_s = options.get("visibility_timeout", _DEFAULT_VISIBILITY_TIMEOUT_S)
    limit_s, name = max(((task.time_limit or 0, task.name) for task in tasks), default=(0, ""))
    if limit_s >= visibility_timeout_s:
        problem = f"{visibility_timeout_s} s: {name} may run for {limit_s} s, and is delivered again while it runs"
        yield Finding("broker_transport_options['visibility_timeout']", problem, "set it above the longest time_limit")


def _amqp_transport(options: Mapping[str, Any]) -> Iterator[Finding]:
    if not options.get("confirm_publish"):
        # The bridge has what it sends confirmed in any case; see confirms.py.
        problem = "off: what tasks send themselves, or Celery as it retries them, may never get to the broker"
        yield Finding("broker_transport_options['confirm_publish']", problem, "set it to True")


def _acknowledgement(tasks: Sequence[Task[..., Any]]) -> Iterator[Finding]:
    for task in tasks:
        for setting in ("acks_late", "reject_on_worker_lost"):
            if not getattr(task, setting):
                problem = "off: when its worker dies, it is begun again only after bridge_redispatch_after_s"
                yield Finding(f"{setting} of task {task.name}", problem, "leave it on")
                break  # without the first the second means nothing

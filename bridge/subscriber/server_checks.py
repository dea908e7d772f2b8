"""Checks of the Redis servers of bus and broker: their kind and version, and what they can lose.

``appendfsync everysec`` is not reported: a power cut loses up to 2 s of events, which most users accept for its speed.
"""

from __future__ import annotations

import re
import shlex
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import OperationalError
from redis import Redis
from redis.connection import SSLConnection
from redis.exceptions import RedisError

from bridge.config import BridgeSettings
from bridge.redis import connect, servers_of
from bridge.subscriber.finding import Finding, Level

#: The first Redis with XAUTOCLAIM.
_MIN_VERSION = (6, 2)
#: Longest wait for a server to accept a connection, and to answer. It is asked once.
_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Server:
    """The settings of one Redis server.

    Arguments:
        name: Its role, ``bus`` or ``broker``.
        holds: What it stores, and so what it can lose.
        settings: By name, as in CONFIG, and also ``version``, ``mode`` and ``role``.
        missing_because: Why some are missing, to follow the word "Redis".
        run_id: Unique for each start of a server.
        cli: The start of a command for it.
    """

    name: str
    holds: str
    settings: Mapping[str, str]
    missing_because: str
    run_id: str | None = None
    cli: str = "redis-cli"

    def finding(self, setting: str, problem: str, advice: str) -> Finding:
        return Finding(f"{setting} of the {self.name}", problem, advice)

    def to_set(self, setting: str, wanted: str, problem: str, level: Level, advice: str = "") -> Finding:
        advice = advice or f"set it to {wanted}, in the configuration of the server and at once"
        return Finding(
            f"{setting} of the {self.name}", problem, advice, f"{self.cli} CONFIG SET {setting} {wanted}", level
        )

    def unknown(self, setting: str, wanted: str) -> Finding:
        advice = f"ensure that it is {wanted}, or allow this user +info and +config|get"
        problem = f"unknown, because Redis {self.missing_because}"
        return Finding(f"{setting} of the {self.name}", problem, advice, level="warn")


def bus_servers(settings: BridgeSettings) -> list[Server]:
    """Read the settings of each server of the bus."""
    try:
        with connect(settings, _TIMEOUT_S) as client:
            return [server_of(one, f"bus at {place}" if place else "bus") for place, one in servers_of(client)]
    except (RedisError, OSError) as error:
        return [Server("bus", "events", {}, f"does not answer ({error})")]


def broker_server(connection: Any) -> Server:  # kombu's; its stubs know neither fractions of seconds nor client
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
    return Server(name, holds, known, missing_because, info.get("run_id"), _cli_of(client))


def _cli_of(client: Redis) -> str:
    """Return the start of a command for a server that has just answered, without its user and password."""
    pool: Any = client.connection_pool
    at = pool.get_connection()  # the pool itself does not know what the primary is that Sentinels name
    pool.release(at)
    words = ["redis-cli"]
    if path := getattr(at, "path", None):
        return shlex.join([*words, "-s", path])
    if at.host not in ("localhost", "127.0.0.1"):
        words += ["-h", at.host]
    if at.port != 6379:
        words += ["-p", str(at.port)]
    if isinstance(at, SSLConnection):
        files: dict[str, Any] = {"--cacert": at.ca_certs, "--cert": at.certfile, "--key": at.keyfile}
        words += ["--tls", *(word for option, file in files.items() if file for word in (option, str(file)))]
        words += ["--insecure"] if at.cert_reqs == ssl.CERT_NONE else []
    return shlex.join(words)


def server_findings(settings: BridgeSettings, servers: Sequence[Server]) -> Iterator[Finding]:
    """Check the servers of the bus."""
    yield from _kind(settings, servers[0])
    for one in servers:
        yield from (*_version(one), *storage_findings(one))


def storage_findings(server: Server) -> Iterator[Finding]:
    """Check whether a server keeps what it has accepted."""
    yield from (*_durability(server), *_memory(server))


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
        yield server.to_set("appendonly", "yes", f"no: {_loss_without_aof(server)}", "warn")
        return
    if appendonly is None:
        yield server.unknown("appendonly", "yes")
    if appendfsync is None:
        yield server.unknown("appendfsync", "everysec or always")
    elif appendfsync == "no":
        problem = f"no: a power cut loses the {server.holds} of the last 30 s or so"
        advice = "set it to everysec, which loses up to 2 s, or always; in the configuration of the server and at once"
        yield server.to_set("appendfsync", "everysec", problem, "warn", advice)


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
        yield server.to_set("maxmemory-policy", "noeviction", problem, "fail")

"""The command that a check proposes for a Redis server reaches that server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bridge import BridgeSettings
from bridge.subscriber.server_checks import bus_servers, server_findings
from bridge.testing.redis_server import RedisServer
from tests.support.requirements import program
from tests.support.servers.certificates import Certificates
from tests.support.servers.tls import TlsServer


def commands(url: str) -> list[str]:
    settings = BridgeSettings.load(redis_url=url)
    return [finding.command for finding in server_findings(settings, bus_servers(settings))]


def test_a_server_that_sentinels_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is for the primary, which is not in the address: it would change another server."""
    with RedisServer() as server:
        monkeypatch.setattr("bridge.redis.client.by_sentinel", lambda *_, **__: lambda: ("127.0.0.1", server.port))
        assert commands("redis+sentinel://127.0.0.1:1/bus") == [f"redis-cli -p {server.port} CONFIG SET appendonly yes"]


def test_a_server_with_tls(tmp_path: Path) -> None:
    """The command has the certificates that the bridge connects with."""
    with TlsServer(Certificates(tmp_path)) as server:
        (command,) = commands(server.url)
        words = command.split()
        done = subprocess.run([program(words[0]), *words[1:]], check=True, capture_output=True, text=True)
        assert done.stdout == "OK\n"
        assert commands(server.url) == []

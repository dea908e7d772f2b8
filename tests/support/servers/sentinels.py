"""A primary with two replicas, and the Sentinels that monitor them."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from redis.sentinel import Sentinel

from bridge.testing.redis_server import RedisServer
from tests.support.ports import free_ports
from tests.support.servers.tls import DOWN_MS
from tests.support.waiting import eventually


class SentinelNode(RedisServer):
    """One Sentinel. It writes what it discovers to its configuration file."""

    def __init__(self, binary: Path | None, port: int, configuration: str) -> None:
        super().__init__(binary)
        self.port = port
        self._configuration = configuration

    def options(self) -> list[str]:
        file = self.directory / "sentinel.conf"
        if not file.exists():
            file.write_text(f'port {self.port}\nbind 127.0.0.1\ndir "{self.directory}"\n{self._configuration}')
        return [str(file), "--sentinel"]


def fail_over(sentinel: Redis, service: str) -> bool:
    """Start a failover at a Sentinel; return False while it refuses, for example during another failover."""
    with suppress(ResponseError):
        return bool(sentinel.execute_command("SENTINEL", "FAILOVER", service))
    return False


class Replicated:
    """A primary, two replicas, and three Sentinels that monitor them.

    Arguments:
        binary: The redis-server of all of them.
        password: Password of the servers and the Sentinels; empty for no password.
    """

    service = "bus"

    def __init__(self, binary: Path | None = None, password: str = "") -> None:
        self.password = password
        login = ["--requirepass", password, "--masterauth", password] if password else []
        # A primary that has lost both replicas, for example in a failover that it missed, refuses writes instead of
        # losing them.
        login += ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "5"]
        common = ["--repl-diskless-sync-delay", "0", "--appendonly", "yes", "--appendfsync", "always", *login]
        ports = free_ports(6)
        self.servers = [RedisServer(binary, common) for _ in range(3)]
        for server, port in zip(self.servers, ports[:3], strict=True):
            server.port = port
        ids = [uuid.uuid4().hex + "0" * 8 for _ in range(3)]
        self.sentinels = [
            SentinelNode(binary, port, self._configuration(ports, ids, number)) for number, port in enumerate(ports[3:])
        ]
        self._stack = ExitStack()

    def _configuration(self, ports: list[int], ids: list[str], own: int) -> str:
        """Return the configuration, with everything that a Sentinel would discover in its first ten seconds."""
        name, others = self.service, [number for number in range(3) if number != own]
        lines = [f"sentinel myid {ids[own]}", f"sentinel monitor {name} 127.0.0.1 {ports[0]} 2"]
        lines += [f"sentinel down-after-milliseconds {name} {DOWN_MS}", f"sentinel failover-timeout {name} 3000"]
        if self.password:
            lines += [f"sentinel auth-pass {name} {self.password}"]
            lines += [f"requirepass {self.password}", f"sentinel sentinel-pass {self.password}"]
        lines += [f"sentinel known-replica {name} 127.0.0.1 {port}" for port in ports[1:3]]
        lines += [f"sentinel known-sentinel {name} 127.0.0.1 {ports[3 + one]} {ids[one]}" for one in others]
        return "\n".join(lines) + "\n"

    @property
    def hosts(self) -> str:
        """Return the addresses of the Sentinels as in a URL."""
        return ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        query = f"?sentinel_password={self.password}" if self.password else ""
        return f"redis+sentinel://{login}{self.hosts}/{self.service}{query}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            primary, *replicas = [stack.enter_context(server) for server in self.servers]
            for replica in replicas:
                self.direct(replica).replicaof("127.0.0.1", primary.port)
            for replica in replicas:
                eventually(lambda one=replica: self.follows(one), "the replica has caught up")
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
            for sentinel in self.sentinels:
                eventually(lambda one=sentinel: self._watches(one), "the Sentinel knows the others")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def direct(self, server: RedisServer) -> Redis:
        """Return a client of one server or Sentinel, in any role."""
        return Redis(port=server.port, password=self.password or None, socket_timeout=5)

    def follows(self, server: RedisServer) -> bool:
        """Return whether a server is a replica that has caught up."""
        with self.direct(server) as client, suppress(RedisError):
            state: Any = client.info("replication")
            return state["role"] == "slave" and state["master_link_status"] == "up"
        return False

    def _watches(self, sentinel: RedisServer) -> bool:
        with self.direct(sentinel) as client:
            state: Any = client.execute_command("SENTINEL", "CKQUORUM", self.service)
            return str(state).startswith(("OK 3", "b'OK 3"))

    def client(self) -> Redis:
        """Return a client of the current primary, which redis-py discovers."""
        options = {"password": self.password or None, "socket_timeout": 2}
        places = [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]
        return Sentinel(places, sentinel_kwargs=options, **options).master_for(self.service)

    def primary(self) -> RedisServer:
        """Return the server that all Sentinels report as primary."""
        return eventually(self._named, "the Sentinels agree", 30)

    def _named(self) -> RedisServer | None:
        # Not discover_master(): the leader of a failover reports the old primary until the failover has finished, and
        # that server may be running again by then.
        ports = set()
        for sentinel in self.sentinels:
            if sentinel.running:
                with self.direct(sentinel) as client:
                    ports.add(int(client.sentinel_get_master_addr_by_name(self.service)[1]))
        return next((server for server in self.servers if {server.port} == ports), None)

    def wait_for_failover(self, old: RedisServer) -> RedisServer:
        """Wait until a server other than *old* is the primary and reports this role; return it."""

        def promoted() -> RedisServer | None:
            with suppress(RedisError):
                if (new := self._named()) not in (None, old):
                    with self.direct(new) as client:
                        return new if client.info("replication")["role"] == "master" else None
            return None

        return eventually(promoted, "another server is the primary", 30)

    def fail_over(self) -> bool:
        """See :func:`fail_over`."""
        with self.direct(self.sentinels[0]) as client:
            return fail_over(client, self.service)

    def heal(self) -> None:
        """Start the servers that are down, and wait until all replicas follow the primary."""
        for server in self.servers + self.sentinels:
            if not server.running:
                server.start()
        primary = self.primary()
        for server in self.servers:
            with self.direct(server) as client:
                if server is not primary and client.info("replication")["role"] == "master":
                    client.replicaof("127.0.0.1", primary.port)  # the Sentinels would do this within ten seconds
        eventually(lambda: sum(map(self.follows, self.servers)) == 2, "both replicas have caught up", 30)

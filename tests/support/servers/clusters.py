"""A Redis Cluster that tests can form, break and heal, and whose slots they can move."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisError

from bridge.testing.redis_server import RedisServer
from tests.support.ports import free_ports
from tests.support.servers.tls import DOWN_MS
from tests.support.waiting import eventually

SLOTS = 16384


class ClusterServers:
    """A Redis Cluster of three primaries with one replica each. The slots are spread evenly.

    Arguments:
        binary: The redis-server of all nodes.
    """

    def __init__(self, binary: Path | None = None) -> None:
        ports = free_ports(12)
        self.servers = []
        for port, bus_port in zip(ports[:6], ports[6:], strict=True):
            options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_MS)]
            options += ["--cluster-port", str(bus_port), "--cluster-replica-validity-factor", "0"]
            options += ["--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"]
            options += ["--appendonly", "yes", "--appendfsync", "always"]
            server = RedisServer(binary, options)
            server.port = port
            self.servers.append(server)
        self._bus_ports = dict(zip(ports[:6], ports[6:], strict=True))
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:3])

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _form(self) -> None:
        first, *others = self.servers
        bounds = [SLOTS * number // 3 for number in range(4)]
        for number, (server, (begin, end)) in enumerate(zip(self.servers, pairwise(bounds), strict=False)):
            self.ask(server, "CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
            self.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in others:
            self.ask(first, "CLUSTER", "MEET", "127.0.0.1", server.port, self._bus_ports[server.port])
        for server in self.servers:
            eventually(lambda one=server: len(self.nodes(one)) == 6, "all nodes know each other")
        for primary, replica in zip(self.servers[:3], self.servers[3:], strict=True):
            node_id = self.node_id(primary)
            eventually(lambda one=replica, it=node_id: self._replicate(one, it), "the replica knows its primary")
        self.wait_until_whole()

    def _replicate(self, replica: RedisServer, node_id: str) -> bool:
        with suppress(RedisError):
            return bool(self.ask(replica, "CLUSTER", "REPLICATE", node_id))
        return False

    def ask(self, server: RedisServer, *command: Any) -> Any:
        """Send a command to one server, no matter which server has its keys."""
        with Redis(port=server.port, socket_timeout=5) as client:
            return client.execute_command(*command)

    def nodes(self, seen_by: RedisServer) -> dict[str, Any]:
        """Return the nodes by address, as one of them reports them."""
        return dict(self.ask(seen_by, "CLUSTER NODES"))

    def node_id(self, server: RedisServer) -> str:
        return self.ask(server, "CLUSTER", "MYID").decode()

    def primaries(self) -> list[RedisServer]:
        """Return the running servers that report that they are primaries."""
        return [server for server in self.servers if server.running and self.ask(server, "ROLE")[0] == b"master"]

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Return the replica of *primary*."""
        return next(
            server
            for server in self.servers
            if server.running and (role := self.ask(server, "ROLE"))[0] == b"slave" and role[2] == primary.port
        )

    def slot(self, key: str) -> int:
        return int(self.ask(self.primaries()[0], "CLUSTER", "KEYSLOT", key))

    def owner(self, key: str) -> RedisServer:
        """Return the primary that has the slot of *key*."""
        slot = self.slot(key)
        return next(
            server for server in self.primaries() if any(first <= slot <= last for first, last in self._slots(server))
        )

    def move_slot(self, key: str, to: RedisServer, halfway: Callable[[], Any] = lambda: None) -> None:
        """Move the slot of *key* to another primary, as redis-cli does.

        Arguments:
            halfway: Called while the slot is migrating and its keys have not moved; missing keys need ASK redirections.
        """
        slot, source = self.slot(key), self.owner(key)
        self.ask(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.node_id(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.node_id(to))
        halfway()
        while names := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.ask(source, "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *names)
        target = self.node_id(to)
        for server in (to, source, *self.primaries()):
            self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", target)

    def _slots(self, server: RedisServer) -> list[tuple[int, int]]:
        myself = next(node for node in self.nodes(server).values() if "myself" in node["flags"])
        return [(int(slot[0]), int(slot[-1])) for slot in myself["slots"]]

    def wait_until_whole(self, timeout_s: float = 30) -> None:
        """Wait until every running server accepts commands and every replica has caught up."""

        def whole() -> bool:
            with suppress(RedisError):
                for server in self.servers:
                    if server.running:
                        state = self.ask(server, "CLUSTER INFO")
                        role = self.ask(server, "ROLE")
                        if state["cluster_state"] != "ok" or (role[0] == b"slave" and role[3] != b"connected"):
                            return False
                return len(self.primaries()) == 3
            return False

        eventually(whole, "all slots are served and all replicas are connected", timeout_s)

    def heal(self) -> None:
        """Start the servers that are down, and wait until the cluster is complete."""
        for server in self.servers:
            if not server.running:
                server.start()
        self.wait_until_whole()

    def client(self) -> RedisCluster:
        """Return redis-py's own client of the whole cluster."""
        return RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", server.port) for server in self.servers[:3]])

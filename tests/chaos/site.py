"""A site under faults: servers, proxies, publishers, subscribers and workers, each a process that can be damaged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil
from redis import Redis

from bridge.testing.redis_server import RedisServer
from tests.chaos.app import GROUP, NEIGHBOUR
from tests.chaos.oracle import Accepted, Loss, read_log
from tests.support import ROOT
from tests.support.proxy import Proxy

PREFIX = "chaos:"
#: A Redis with ``appendfsync everysec`` loses the writes of at most this time in a power failure.
WINDOW_S = 2.0
#: Timeouts that are an hour by default are seconds here, so that they expire many times in a run of minutes.
FAST = {
    "BRIDGE_CLAIM_IDLE_S": "2",
    "BRIDGE_MAINTENANCE_INTERVAL_S": "0.5",
    "BRIDGE_HEARTBEAT_INTERVAL_S": "1",
    "BRIDGE_SOCKET_TIMEOUT_S": "5",
    "BRIDGE_LEASE_S": "3",
    "BRIDGE_REDISPATCH_AFTER_S": "10",
    "BRIDGE_MAX_REDISPATCHES": "1000",  # no dead letter because of bad luck
    "BRIDGE_MAX_DEAD_LETTERS": "1000000",
    "BRIDGE_MAX_DEAD_LETTER_BYTES": "1000000000",
}
#: Settings of the second application. It keeps events for much less time than the first one needs them.
NEIGHBOUR_SETTINGS = {"CHAOS_GROUP": NEIGHBOUR, "BRIDGE_EVENT_TTL_S": "15", "BRIDGE_BATCH_SIZE": "50"}
#: With two applications, publishers wait earlier, so that no task waits in its queue for longer than that.
_NEIGHBOURS_BACKLOG = "300"
_NEIGHBOURS = "-neighbour"
_WORKER = ("--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "WARNING", "-c", "2")


class Site:
    """Starts all processes, damages them on request, and provides the records for the verdict.

    Arguments:
        directory: Folder for the logs, which are kept.
        seed: Seed of the publishers.
        fsync: ``appendfsync`` of the servers; empty for no append-only file.
        shared: Whether bus and broker are one server.
        proxies: Whether there are proxies in front of the servers.
        size: Number of publishers, of subscribers and of workers.
        neighbours: Whether a second application with the same handlers is on the bus, see ``NEIGHBOUR_SETTINGS``.
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        *,
        fsync: str = "",
        shared: bool = True,
        proxies: bool = False,
        size: int = 2,
        neighbours: bool = False,
    ) -> None:
        self.directory = directory
        #: Number of faults by name.
        self.done: Counter[str] = Counter()
        #: Number of processes that exited unexpectedly, by name.
        self.restarts: Counter[str] = Counter()
        self.losses: list[Loss] = []
        options = ["--appendonly", "yes", "--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0"] if fsync else []
        self.bus = RedisServer(arguments=options)
        self.broker = self.bus if shared else RedisServer(arguments=options)
        self.oracle = RedisServer()
        self.proxies = [Proxy(server.port) for server in self.servers] if proxies else []
        self._commands = {
            name: command for number in range(size) for name, command in self._commands_of(number, seed).items()
        }
        self.groups = [GROUP, NEIGHBOUR] if neighbours else [GROUP]
        if neighbours:
            second = [name for name in self._commands if not name.startswith("publisher")]
            self._commands |= {f"{name}{_NEIGHBOURS}": self._commands[name] for name in second}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        #: The position in its log at which the output of a process begins.
        self._begun_at: dict[str, int] = {}

    def _commands_of(self, number: int, seed: int) -> dict[str, list[str]]:
        celery = [sys.executable, "-m", "celery", "-A", "tests.chaos.app"]
        worker = [*celery, "worker", "-n", f"w{number}@%h", *_WORKER]
        log = str(self.directory / f"publisher{number}.accepted")
        publisher = [sys.executable, "-m", "tests.chaos.publisher", f"p{number}", str(seed + number), log]
        return {
            f"subscriber{number}": [*celery, "bus", "subscribe", "-l", "WARNING"],
            # One worker has its own subscriber, as is common.
            f"worker{number}": worker if number == 0 else [*worker, "--no-subscriber"],
            f"publisher{number}": publisher,
        }

    @property
    def servers(self) -> list[RedisServer]:
        return [self.bus] if self.broker is self.bus else [self.bus, self.broker]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in (*self.servers, self.oracle, *self.proxies):
                stack.enter_context(part)
            stack.callback(self._end)
            for name in self._commands:
                self._start(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    # Processes

    def names(self, kind: str) -> list[str]:
        return sorted(name for name in self._running if name.startswith(kind))

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._running[name]

    def children(self, name: str) -> list[psutil.Process]:
        """Return the pool processes of a worker."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._running[name].pid).children()
        return []

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL and start it again; the pool of a worker keeps running."""
        process = self._running[name]
        process.kill()
        process.wait()
        self._start(name)

    def stop_application(self, chance: random.Random, seconds: float) -> None:
        """Kill all processes of one application that read the journal, and start them again after some time."""
        second = len(self.groups) > 1 and chance.random() < 0.5
        readers = [*self.names("subscriber"), *self.names("worker0")]
        names = [name for name in readers if name.endswith(_NEIGHBOURS) == second]
        for name in names:
            self._running[name].kill()
            self._running[name].wait()
        time.sleep(seconds)
        for name in names:
            self._start(name)

    def tend(self) -> None:
        """Restart processes that exited, like a supervisor, or are about to exit: Celery's workers may hang then."""
        for name, process in list(self._running.items()):
            if process.poll() is not None or b"Unrecoverable error" in self._said(name):
                self.restarts[name] += 1
                self.kill(name)

    def _said(self, name: str) -> bytes:
        with self._log(name).open("rb") as log:
            log.seek(self._begun_at[name])
            return log.read()

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def stop(self, kind: str) -> None:
        """Stop the processes of one kind gracefully."""
        for name in self.names(kind):
            process = self._running.pop(name)
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(30)

    def _start(self, name: str) -> None:
        addresses = self.proxies or self.servers
        environment = FAST | {
            "BRIDGE_CHANNEL_PREFIX": PREFIX,
            "BRIDGE_REDIS_URL": addresses[0].url,
            "CELERY_BROKER_URL": addresses[-1].url,
            "CHAOS_ORACLE_URL": self.oracle.url,
            "C_FORCE_ROOT": "1",
            "PYTHONWARNINGS": "ignore",
        }
        if len(self.groups) > 1:
            environment |= {"CHAOS_MAX_BACKLOG": _NEIGHBOURS_BACKLOG, "CHAOS_GROUPS": str(len(self.groups))}
        if name.endswith(_NEIGHBOURS):
            environment |= NEIGHBOUR_SETTINGS
        with self._log(name).open("ab") as output:
            self._begun_at[name] = output.tell()
            self._running[name] = subprocess.Popen(
                self._commands[name],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,
            )

    def _end(self) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # Pools whose main process was killed: they exit when they notice it, or here.
        for process in psutil.process_iter(["cmdline", "environ"]):
            if (process.info["environ"] or {}).get("CHAOS_ORACLE_URL") == self.oracle.url:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    # Servers

    def lose_power(self, server: RedisServer, chance: random.Random) -> None:
        """Kill a server and truncate its file by what ``everysec`` may not have written to the disk."""
        with Redis.from_url(server.url) as admin:
            ((directory),) = admin.config_get("dir").values()
        (file,) = Path(directory).rglob("*.incr.aof")
        synced = file.stat().st_size
        time.sleep(chance.uniform(0.2, WINDOW_S - 0.1))
        since = time.time() - WINDOW_S
        server.kill()
        if server is self.bus:
            self.losses.append(Loss(since, time.time()))
        with file.open("r+b") as written:
            written.truncate(chance.randint(synced, file.stat().st_size))
        server.start()

    # Accepted events

    def accepted(self) -> list[Accepted]:
        """Read the logs of the publishers."""
        return [event for path in sorted(self.directory.glob("*.accepted")) for event in read_log(path)]

"""A site under fault: servers, proxies, publishers, subscribers and workers, each a process that may be harmed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil
from redis import Redis
from redis.exceptions import RedisError

from bridge import BridgeSettings
from bridge.dead_letters import DeadLetters
from bridge.devserver import RedisServer
from bridge.keys import Keys
from tests.conftest import ROOT
from tests.faults.app import GROUP
from tests.faults.oracle import Verdict, judge, read_log
from tests.faults.proxy import Proxy

PREFIX = "chaos:"
#: Everything that takes an hour by default is noticed within seconds, so that a run of minutes sees it often.
FAST = {
    "BRIDGE_CLAIM_IDLE_S": "2",
    "BRIDGE_UPKEEP_INTERVAL_S": "0.5",
    "BRIDGE_HEARTBEAT_INTERVAL_S": "1",
    "BRIDGE_SOCKET_TIMEOUT_S": "5",
    "BRIDGE_LEASE_S": "3",
    "BRIDGE_REDISPATCH_AFTER_S": "10",
    "BRIDGE_MAX_REDISPATCHES": "1000",  # no dead letter because of bad luck
    "BRIDGE_MAX_DEAD_LETTERS": "1000000",
    "BRIDGE_MAX_DEAD_LETTER_BYTES": "1000000000",
}
_WORKER = ("--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "WARNING", "-c", "2")


class Site:
    """Starts everything, harms it when told to, and judges in the end.

    Arguments:
        directory: For logs; they stay.
        seed: Of the publishers.
        fsync: ``appendfsync`` of the servers; empty: no append-only file.
        shared: Whether bus and broker are one server.
        proxies: Whether proxies stand before the servers.
        size: Publishers, subscribers and workers, each so many.
    """

    def __init__(
        self, directory: Path, seed: int, *, fsync: str = "", shared: bool = True, proxies: bool = False, size: int = 2
    ) -> None:
        self.directory = directory
        self.done: Counter[str] = Counter()
        self.power_losses: list[float] = []
        options = ["--appendonly", "yes", "--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0"] if fsync else []
        self.bus = RedisServer(arguments=options)
        self.broker = self.bus if shared else RedisServer(arguments=options)
        self.oracle = RedisServer()
        self.proxies = [Proxy(server.port) for server in self.servers] if proxies else []
        self._seed = seed
        self._size = size
        self._stack = ExitStack()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}

    @property
    def servers(self) -> list[RedisServer]:
        return [self.bus] if self.broker is self.bus else [self.bus, self.broker]

    def __enter__(self) -> Self:
        for part in (*self.servers, self.oracle, *self.proxies):
            self._stack.enter_context(part)
        self._stack.callback(self._end)
        python, celery = sys.executable, [sys.executable, "-m", "celery", "-A", "tests.faults.app"]
        for number in range(self._size):
            self._commands[f"subscriber{number}"] = [*celery, "bus", "subscribe", "-l", "WARNING"]
            self._commands[f"worker{number}"] = [*celery, "worker", "-n", f"w{number}@%h", "--no-subscriber", *_WORKER]
            log = str(self.directory / f"publisher{number}.accepted")
            seed = str(self._seed + number)
            self._commands[f"publisher{number}"] = [
                python, "-m", "tests.faults.publisher", f"p{number}", seed, log
            ]  # fmt: skip
        # One worker has a subscriber of its own, as most have.
        self._commands["worker0"].remove("--no-subscriber")
        for name in self._commands:
            self._start(name)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    # Processes

    def names(self, kind: str) -> list[str]:
        return sorted(name for name in self._running if name.startswith(kind))

    def process(self, name: str) -> subprocess.Popen[bytes]:
        return self._running[name]

    def children(self, name: str) -> list[psutil.Process]:
        """Return the pool of a worker."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._running[name].pid).children()
        return []

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL and start it again; a worker's pool is left to itself."""
        process = self._running[name]
        process.kill()
        process.wait()
        self._start(name)

    def tend(self) -> None:
        """Start what ended by itself, as a supervisor does."""
        for name, process in list(self._running.items()):
            if process.poll() is not None:
                self.done["ended by itself"] += 1
                self._start(name)

    def stop(self, kind: str) -> None:
        """End the processes of one kind gently."""
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
        with (self.directory / f"{name}.log").open("ab") as output:
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
        # Pools whose main process was killed: they end when they notice, or here.
        for process in psutil.process_iter(["cmdline", "environ"]):
            if (process.info["environ"] or {}).get("CHAOS_ORACLE_URL") == self.oracle.url:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    # Servers

    def lose_power(self, server: RedisServer, moments: random.Random) -> None:
        """Kill a server and take away what it had written and not surely synced: up to the last second."""
        with Redis.from_url(server.url) as admin:
            ((directory),) = admin.config_get("dir").values()
        (file,) = Path(directory).rglob("*.incr.aof")
        before = file.stat().st_size
        time.sleep(1)
        server.kill()
        self.power_losses.append(time.time())
        with file.open("r+b") as written:
            written.truncate(moments.randint(before, file.stat().st_size))
        server.start()

    # The end

    def accepted(self) -> int:
        return sum(len(read_log(path)) for path in self.directory.glob("*.accepted"))

    def settle(self, timeout_s: float) -> str:
        """Wait until nothing is left to do; return what is, if it takes longer."""
        deadline, left = time.monotonic() + timeout_s, "everything"
        while left and time.monotonic() < deadline:
            time.sleep(0.2)
            self.tend()
            try:
                left = self._left()
            except (RedisError, OSError) as error:
                left = str(error)
        return left

    def _left(self) -> str:
        keys = Keys(PREFIX)
        with Redis.from_url(self.bus.url) as bus, Redis.from_url(self.broker.url) as broker:
            group = next((row for row in bus.xinfo_groups(keys.journal) if row["name"] == GROUP.encode()), None)
            if group is None:
                return "no group"
            counts = {
                "pending": group["pending"],
                "lag": group["lag"] or 0,
                "in the ledger": bus.zcard(keys.inflight(GROUP)),
                "in the queue": broker.llen("celery"),
            }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)

    def verdict(self) -> Verdict:
        """Judge what was accepted."""
        accepted = [row for path in sorted(self.directory.glob("*.accepted")) for row in read_log(path)]
        settings = BridgeSettings.load(redis_url=self.bus.url, channel_prefix=PREFIX, group=GROUP)
        with Redis.from_url(self.bus.url) as bus, Redis.from_url(self.oracle.url) as oracle:
            texts = _texts(oracle, "runs") + _texts(bus, f"{PREFIX}effects")
            letters = DeadLetters(bus, settings).latest(1_000_000)
            dead = [(letter.handler, letter.event_id, letter.reason) for letter in letters]
            return judge(accepted, texts, _texts(oracle, "deliveries"), dead, self.power_losses)


def _texts(client: Redis, key: str) -> list[str]:
    return [value.decode() for value in client.lrange(key, 0, -1)]


def later(delay_s: float, do: Callable[[], None]) -> threading.Timer:
    """Do something in a while: end a fault."""
    timer = threading.Timer(delay_s, do)
    timer.daemon = True
    timer.start()
    return timer

"""The faults of a site, one at a time, chosen by a seeded random generator."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil
from redis import Redis

from bridge.storage.keys import Keys
from tests.chaos.app import GROUP
from tests.chaos.oracle import Loss
from tests.chaos.site import PREFIX, Site

#: Injects a fault with the random generator and returns its name; empty if there was nothing to damage.
Fault = Callable[[Site, random.Random], str]

_JOURNAL = Keys(PREFIX).journal


def kill_subscriber(site: Site, chance: random.Random) -> str:
    site.kill(chance.choice(site.names("subscriber")))
    return "subscriber killed"


def kill_worker(site: Site, chance: random.Random) -> str:
    site.kill(chance.choice(site.names("worker")))
    return "worker killed"


def kill_pool_child(site: Site, chance: random.Random) -> str:
    children = site.children(chance.choice(site.names("worker")))
    if not children:
        return ""
    with suppress(psutil.NoSuchProcess):
        chance.choice(children).kill()
        return "pool child killed"
    return ""


def kill_whole_worker(site: Site, chance: random.Random) -> str:
    name = chance.choice(site.names("worker"))
    for child in site.children(name):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    site.kill(name)
    return "worker with its pool killed"


def kill_publisher(site: Site, chance: random.Random) -> str:
    site.kill(chance.choice(site.names("publisher")))
    return "publisher killed"


def stop_application(site: Site, chance: random.Random) -> str:
    """Let an application miss events for longer than the other one keeps them."""
    site.stop_application(chance, chance.uniform(16, 22))
    return "application down"


def kill_server(site: Site, chance: random.Random) -> str:
    server = chance.choice(site.servers)
    server.kill()
    time.sleep(chance.uniform(0, 0.5))
    server.start()
    return "Redis killed"


def lose_power(site: Site, chance: random.Random) -> str:
    site.lose_power(chance.choice(site.servers), chance)
    return "power lost"


def freeze(site: Site, chance: random.Random) -> str:
    """Freeze a process for some seconds, while the others continue."""
    kind = chance.choice(["subscriber", "worker", "pool child", "Redis"])
    name = "" if kind == "Redis" else chance.choice(site.names("worker" if kind == "pool child" else kind))
    if kind == "Redis":
        pid = chance.choice(site.servers).pid
    elif kind == "pool child":
        pid = chance.choice([child.pid for child in site.children(name)] or [0])
    else:
        pid = site.process(name).pid
    if not pid:
        return ""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(chance.uniform(0.5, 12))
        os.kill(pid, signal.SIGCONT)
        return f"{kind} frozen"
    return ""


def cut(site: Site, chance: random.Random) -> str:
    chance.choice(site.proxies).cut()
    return "connections cut"


def drop_reply(site: Site, chance: random.Random) -> str:
    proxy = chance.choice(site.proxies)
    before = proxy.done["reply dropped"]
    proxy.drop_reply(chance.choice([b"EVALSHA", b"XREADGROUP", b"LPUSH", b"EXEC", b"BRPOP", b"XAUTOCLAIM"]))
    time.sleep(1)
    proxy.heal()
    return "reply dropped" if proxy.done["reply dropped"] > before else ""


def blackhole(site: Site, chance: random.Random) -> str:
    proxy = chance.choice(site.proxies)
    proxy.blackhole()
    time.sleep(chance.uniform(0.5, 12))
    proxy.heal()
    return "blackholed"


def refuse(site: Site, chance: random.Random) -> str:
    proxy = chance.choice(site.proxies)
    proxy.refuse()
    time.sleep(chance.uniform(0.1, 4))
    proxy.heal()
    return "connections refused"


def dribble(site: Site, chance: random.Random) -> str:
    proxy = chance.choice(site.proxies)
    proxy.dribble(chance.randint(100, 2000), 0.01)
    time.sleep(chance.uniform(1, 4))
    proxy.heal()
    return "dribbled"


def _admin(url: str) -> Redis:
    return Redis.from_url(url, socket_timeout=30)  # longer than each pause below


def fill_memory(site: Site, chance: random.Random) -> str:
    server = chance.choice(site.servers)
    with _admin(server.url) as admin:
        before = _refused(admin)
        admin.config_set("maxmemory", max(1, int(admin.info("memory")["used_memory"]) - 1))
        time.sleep(chance.uniform(0.5, 6))
        admin.config_set("maxmemory", 0)
        return "memory filled" if _refused(admin) > before else ""


def _refused(admin: Redis) -> int:
    return int(admin.info("errorstats").get("errorstat_OOM", {"count": 0})["count"])


def flush_all(site: Site, chance: random.Random) -> str:
    """Delete everything: only events that are published afterwards can be required."""
    with _admin(site.bus.url) as admin:
        admin.flushall()
    site.losses.append(Loss(0, time.time()))
    return "FLUSHALL"


def pause(site: Site, chance: random.Random) -> str:
    with _admin(site.bus.url) as admin:
        admin.client_pause(chance.randint(200, 8000), all=True)
    return "CLIENT PAUSE"


def command(*words: str) -> Fault:
    """Return the fault of an administrator's command to the bus; it counts if the command had an effect."""

    def run(site: Site, chance: random.Random) -> str:
        with _admin(site.bus.url) as admin:
            found = admin.execute_command(*words)
        return " ".join(words[:4]).replace(_JOURNAL, "journal").replace(f" {GROUP}", "") if found else ""

    return run


@dataclass(frozen=True)
class Scenario:
    """Faults with their weights, the site that they require, and the maximum pause between two faults.

    Arguments:
        faults: The faults and their relative frequencies.
        fsync: See :class:`Site`.
        proxies: See :class:`Site`.
        neighbours: See :class:`Site`.
        pause_s: Maximum pause.
    """

    faults: Mapping[Fault, int]
    fsync: str = ""
    proxies: bool = False
    neighbours: bool = False
    pause_s: float = 4.0


_KILLS: dict[Fault, int] = {
    kill_subscriber: 3,
    kill_worker: 2,
    kill_whole_worker: 1,
    kill_pool_child: 3,
    kill_publisher: 1,
}

SCENARIOS = {
    "kills": Scenario(_KILLS | {kill_server: 2}, fsync="always"),
    "kills-everysec": Scenario(_KILLS | {lose_power: 2}, fsync="everysec"),
    "network": Scenario({cut: 3, drop_reply: 4, blackhole: 1, refuse: 2, dribble: 1}, proxies=True),
    "freeze": Scenario({freeze: 1}),
    "memory": Scenario({fill_memory: 1}),
    "commands": Scenario(
        {
            command("CLIENT", "KILL", "TYPE", "pubsub"): 6,
            command("CLIENT", "KILL", "TYPE", "normal"): 6,
            command("SCRIPT", "FLUSH"): 6,
            pause: 3,
            command("XGROUP", "DESTROY", _JOURNAL, GROUP): 1,
            command("DEL", _JOURNAL): 1,
        }
    ),
    "neighbours": Scenario(_KILLS | {stop_application: 4, kill_server: 1}, fsync="always", neighbours=True),
    "flush": Scenario({flush_all: 1, kill_subscriber: 1, kill_worker: 1}),
}

"""What is done to a site: one fault at a time, chosen by a seeded generator."""

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
from redis.exceptions import RedisError

from bridge.keys import Keys
from tests.faults.app import GROUP
from tests.faults.site import PREFIX, Site

Fault = Callable[[Site, random.Random], str]


def kill_subscriber(site: Site, moments: random.Random) -> str:
    site.kill(moments.choice(site.names("subscriber")))
    return "subscriber killed"


def kill_worker(site: Site, moments: random.Random) -> str:
    site.kill(moments.choice(site.names("worker")))
    return "worker killed"


def kill_pool_child(site: Site, moments: random.Random) -> str:
    children = site.children(moments.choice(site.names("worker")))
    if not children:
        return ""
    with suppress(psutil.NoSuchProcess):
        moments.choice(children).kill()
        return "pool child killed"
    return ""


def kill_server(site: Site, moments: random.Random) -> str:
    server = moments.choice(site.servers)
    server.kill()
    time.sleep(moments.uniform(0, 0.5))
    server.start()
    return "Redis killed"


def lose_power(site: Site, moments: random.Random) -> str:
    site.lose_power(moments.choice(site.servers), moments)
    return "power lost"


def freeze(site: Site, moments: random.Random) -> str:
    """Stop a process for a while; the others go on."""
    kind = moments.choice(["subscriber", "worker", "pool child", "Redis"])
    name = "" if kind == "Redis" else moments.choice(site.names("worker" if kind == "pool child" else kind))
    if kind == "Redis":
        pid = moments.choice(site.servers).pid
    elif kind == "pool child":
        pid = moments.choice([child.pid for child in site.children(name)] or [0])
    else:
        pid = site.process(name).pid
    if not pid:
        return ""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(moments.uniform(0.5, 12))
        os.kill(pid, signal.SIGCONT)
        return f"{kind} frozen"
    return ""


def cut(site: Site, moments: random.Random) -> str:
    moments.choice(site.proxies).cut()
    return "connections cut"


def drop_reply(site: Site, moments: random.Random) -> str:
    proxy = moments.choice(site.proxies)
    before = proxy.done["reply dropped"]
    proxy.drop_reply(moments.choice([b"EVALSHA", b"XREADGROUP", b"LPUSH", b"EXEC", b"BRPOP", b"XAUTOCLAIM"]))
    time.sleep(1)
    proxy.heal()
    return "reply dropped" if proxy.done["reply dropped"] > before else ""


def blackhole(site: Site, moments: random.Random) -> str:
    proxy = moments.choice(site.proxies)
    proxy.blackhole()
    time.sleep(moments.uniform(0.5, 12))
    proxy.heal()
    return "blackholed"


def refuse(site: Site, moments: random.Random) -> str:
    proxy = moments.choice(site.proxies)
    proxy.refuse()
    time.sleep(moments.uniform(0.1, 4))
    proxy.heal()
    return "connections refused"


def dribble(site: Site, moments: random.Random) -> str:
    proxy = moments.choice(site.proxies)
    proxy.dribble(moments.randint(100, 2000), 0.01)
    time.sleep(moments.uniform(1, 4))
    proxy.heal()
    return "dribbled"


def fill_memory(site: Site, moments: random.Random) -> str:
    server = moments.choice(site.servers)
    with Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", max(1, int(admin.info("memory")["used_memory"]) - 1))
        time.sleep(moments.uniform(0.5, 6))
        refused = int(admin.info("stats")["total_error_replies"])
        admin.config_set("maxmemory", 0)
    return "memory filled" if refused else ""


def command(*words: str | int) -> Fault:
    """Return the fault of an administrator's command to the bus."""

    def run(site: Site, moments: random.Random) -> str:
        with Redis.from_url(site.bus.url) as admin, suppress(RedisError):
            admin.execute_command(*words)
        return " ".join(str(word) for word in words[:3]).replace(Keys(PREFIX).journal, "journal")

    return run


@dataclass(frozen=True)
class Scenario:
    """Faults with their weights, the site they are for, and the pause between two, at most.

    Arguments:
        faults: What happens, and how often in comparison.
        fsync: See :class:`Site`.
        proxies: See :class:`Site`.
        pause_s: Longest pause.
    """

    faults: Mapping[Fault, int]
    fsync: str = ""
    proxies: bool = False
    pause_s: float = 4.0


_JOURNAL = Keys(PREFIX).journal
_KILLS: dict[Fault, int] = {kill_subscriber: 3, kill_worker: 2, kill_pool_child: 3}

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
            command("CLIENT", "PAUSE", 2000): 4,
            command("XGROUP", "DESTROY", _JOURNAL, GROUP): 1,
            command("DEL", _JOURNAL): 1,
        }
    ),
}

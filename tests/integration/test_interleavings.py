"""Every order of the requests of subscribers, workers and retries, with lost and late requests, up to a bound."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import resources
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from redis import Redis
from redis.backoff import AbstractBackoff

from bridge import BridgeSettings
from bridge.handlers import leases
from bridge.redis import retry
from bridge.storage import JournalConsumer, lua
from bridge.storage.entries import Claimed
from bridge.subscriber.dispatch import transaction
from bridge.testing.redis_server import RedisServer
from tests.support.checker.explore import Explored, Violation, explore
from tests.support.checker.processes import rescuer, subscriber, worker
from tests.support.checker.site import CLOCK, HANDLER, START_MS, Site
from tests.support.requirements import any_redis_binary

#: Further faults in each scenario, see `make orders`.
MORE_FAULTS = int(os.environ.get("MODEL_FAULTS", "0"))
#: The clock of the server, for scripts.
SERVER_MS = f'local function server_ms() return tonumber(redis.call("GET", "{CLOCK}")) end\n'

Build = Callable[[Site], None]


class Model:
    """The server, and how scripts and code are changed for the model, or broken for a test of the checker."""

    def __init__(self, server: RedisServer, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self._url = server.url
        self._admin = Redis.from_url(server.url, single_connection_client=True)
        self._texts = {name: lua.script_text(name) for name in _scripts()}
        real = lua._read("include/server_ms")
        self._texts = {name: text.replace(real, SERVER_MS) for name, text in self._texts.items()}
        patch.setattr(lua, "script_text", self._texts.__getitem__)
        # Everything that a process does follows from what it has seen: no clock and no random numbers.
        patch.setattr(transaction, "_TIME", ("ECHO", "0"))
        patch.setattr(transaction, "server_ms", lambda _: START_MS)
        patch.setattr(transaction.DispatchTransaction, "now_ms", START_MS)
        patch.setattr(leases, "secrets", SimpleNamespace(token_hex=_token))
        patch.setattr(leases.Leases, "_start_renewing", lambda _: None)
        patch.setattr(leases.time, "sleep", lambda _: None)

    def replace(self, name: str, old: str, new: str) -> None:
        """Change the text of a script."""
        assert self._texts[name].count(old) == 1, f"{name}.lua has changed: adapt the test"
        self._texts[name] = self._texts[name].replace(old, new)

    def explore(self, scenario: Scenario) -> Explored:
        """Follow every course of a scenario."""
        build, faults, attempts, *bounds = scenario
        self.patch.setattr(retry, "_publish_backoff", _Attempts(attempts))
        settings = BridgeSettings.load(redis_url=self._url, channel_prefix="m:", group="g", publish_timeout_s=3600)
        names = {self._admin.script_load(text): name for name, text in self._texts.items()}

        def make() -> Site:
            site = Site(self._admin, settings, names, *bounds)
            build(site)
            return site

        return explore(make, faults + MORE_FAULTS)


class _Attempts(AbstractBackoff):
    """Allows so many attempts: the pause after the last one would take longer than the limit."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts

    def compute(self, failures: int) -> float:
        return 0.0 if failures < self._attempts else math.inf


def _scripts() -> list[str]:
    files = (path.name for path in resources.files(lua).iterdir())
    return [name.removesuffix(".lua") for name in files if name.endswith(".lua")]


def _token(_: int) -> str:
    """Return the next token of the process that runs in this thread."""
    thread: Any = threading.current_thread()
    thread.tokens = getattr(thread, "tokens", itertools.count())
    return f"{thread.name}-{next(thread.tokens)}"


@pytest.fixture(scope="module")
def model_server() -> Iterator[RedisServer]:
    with RedisServer(any_redis_binary()) as running:
        yield running


@pytest.fixture
def model(model_server: RedisServer) -> Iterator[Model]:
    logging.disable()
    with pytest.MonkeyPatch.context() as patch:
        yield Model(model_server, patch)
    logging.disable(logging.NOTSET)


# Scenarios: how many processes they have, and how many faults, is what can be followed in seconds.


def dispatch(site: Site) -> None:
    """A subscriber may be paused at any point; another one claims what it has read."""
    site.publish(first=HANDLER, second=HANDLER)
    site.add("first", subscriber(site, steps=2))
    site.add("second", subscriber(site, steps=1, claims=True))


def dispatch_again(site: Site) -> None:
    """A subscriber goes on after an error."""
    site.publish(one=HANDLER)
    site.add("one", subscriber(site, steps=4))


def handed_over(site: Site) -> None:
    """Two subscribers with different handlers hand the event over to each other."""
    site.publish(first="t.one", second="t.two")
    site.add("first", subscriber(site, steps=2, handler="t.one"))
    site.add("second", subscriber(site, steps=1, handler="t.two"))


def runs(site: Site) -> None:
    """Two workers share the messages of a task."""
    site.send_directly()
    site.add("one", worker(site, 2))
    site.add("two", worker(site, 2))


def rescue(site: Site) -> None:
    """A worker and its successors, and a leader that sends overdue tasks again."""
    site.send_directly()
    site.add("worker", worker(site, 3))
    site.add("leader", rescuer(site))


class Scenario(NamedTuple):
    """A site, and the bounds of what is followed."""

    build: Build
    faults: int
    attempts: int = 1
    retries: int = 0
    restores: int = 0
    pauses: int = 0


SCENARIOS = {
    "dispatch": Scenario(dispatch, faults=1),
    "dispatch after errors": Scenario(dispatch_again, faults=1),
    "dispatch to different handlers": Scenario(handed_over, faults=0),
    "copies": Scenario(runs, faults=1, restores=1),
    "copies, repeated requests": Scenario(runs, faults=1, attempts=2, restores=1),
    "copies of a retried task": Scenario(runs, faults=0, retries=1, restores=1),
    "redispatch": Scenario(rescue, faults=1, pauses=1),
    "redispatch of a retried task": Scenario(rescue, faults=0, retries=1, pauses=1),
}


@pytest.mark.timeout(3600 if MORE_FAULTS else 300)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_order(model: Model, name: str) -> None:
    """In any order, the task has at most one effect, no try runs alongside or after a later one, nothing is lost."""
    explored = model.explore(SCENARIOS[name])
    assert explored.states > 40
    assert explored.ends > 4


# What the checker finds


def claim_and_then_fence(model: Model) -> None:
    """Entries are claimed in one request, and the fencing token is advanced in the next one."""

    def claim(self: Any, min_idle_ms: int, cursor: bytes, count: int) -> Claimed:
        group = (self._key, self.group, self.name, min_idle_ms, cursor)
        taken: Any = self._client.xautoclaim(*group, count=count, justid=True)
        self.advance_fencing_token()
        return Claimed(b"0-0", len(taken), 0)

    model.patch.setattr(JournalConsumer, "claim", claim)


def no_fence(model: Model) -> None:
    """Claiming does not advance the fencing token."""
    model.replace("claim", 'redis.call("INCRBY", fencing_token, 1)', "")


def doubt_forgotten(model: Model) -> None:
    """After a lost reply, entries are read again without a new fencing token."""
    model.patch.setattr(JournalConsumer, "advance_fencing_token", lambda _: None)


def tries_forgotten(model: Model) -> None:
    """A message of an earlier try may start."""
    model.replace("start_run", "if retries < due then", "if false then")


def no_done_mark(model: Model) -> None:
    """A copy of the message of a task that has ended may start."""
    model.replace("start_run", 'if idempotent and redis.call("EXISTS", done) == 1 then', "if false then")


def no_lease(model: Model) -> None:
    """A copy of the message of a running task may start."""
    model.replace("start_run", "if holder and holder ~= token and not handed_on then", "if false then")


def end_in_memory(model: Model) -> None:
    """A message is acknowledged though the end of its task is only in the memory of a process."""
    end = leases.Leases.end

    def end_once(self: Any, task_id: str, *args: Any, **options: Any) -> None:
        with suppress(_Remembered):
            end(self, task_id, *args, **options)

    def remember(_: float) -> None:
        raise _Remembered

    model.patch.setattr(leases.Leases, "end", end_once)
    model.patch.setattr(leases.time, "sleep", remember)


class _Remembered(Exception):
    """The end of a task could not be recorded at once."""


BROKEN = {
    claim_and_then_fence: ("dispatch", "two messages"),
    no_fence: ("dispatch", "two messages"),
    doubt_forgotten: ("dispatch after errors", "two messages"),
    tries_forgotten: ("copies of a retried task", "after a later one was due"),
    no_done_mark: ("copies", "two effects"),
    no_lease: ("copies", "two effects"),
    end_in_memory: ("redispatch", "two effects"),
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_defects_are_found(model: Model, broken: Callable[[Model], None]) -> None:
    """If a safeguard is taken out, the checker finds an order of requests that shows it."""
    scenario, text = BROKEN[broken]
    broken(model)
    with pytest.raises(Violation, match=text):
        model.explore(SCENARIOS[scenario])

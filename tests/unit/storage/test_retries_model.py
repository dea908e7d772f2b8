"""A model of one task: its runs, its retries, and its messages, each of which the broker may deliver at any time."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from bridge import BridgeSettings
from bridge.redis.client import connect
from bridge.storage.in_flight import Delivery, StartResult
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.ledgers import PAIR, end
from tests.support.models import run_model

#: How often each call is made; more than once after a lost reply.
calls = st.integers(1, 2)
choices = st.integers(0, 1000)


@dataclass(frozen=True)
class Running:
    """A run of the try of a number."""

    token: str
    number: int


class TaskMachine(RuleBasedStateMachine):
    """One task. No two runs are in progress, and a try starts again only if a run of it crashed or gave it back."""

    def __init__(self, url: str) -> None:
        super().__init__()
        prefix = f"test:{uuid.uuid4().hex[:12]}:"
        fixed = {"redis_url": url, "channel_prefix": prefix, "group": "tests", "max_redispatches": 1000}
        settings = BridgeSettings.load(**fixed)
        self.client, self.keys = connect(settings), Keys(prefix)
        self.ledger = Storage(self.client, settings).ledger
        self.client.xgroup_create(self.keys.journal, "tests", mkstream=True)
        self.ledger.acknowledge_sent([], [PAIR.entry("t")])
        #: Every message that was sent. The broker may deliver each of them at any time.
        self.messages = [Delivery()]
        #: The run in progress, and one that has sent its retry and not yet released its lease.
        self.run: Running | None = None
        self.leaving: Running | None = None
        #: Whose lease it is, unless it has expired.
        self.holder = ""
        self.due, self.ended = 0, False
        self.releases: list[tuple[str, int]] = []
        self.starts: Counter[int] = Counter()
        self.repeatable: Counter[int] = Counter()

    def teardown(self) -> None:
        """The task can always go on: once its leases have expired, it is sent again, and this message starts."""
        if not self.ended and self.run is None:
            self.expire()
            self.redispatch()
            message = self.messages[-1]
            assert message == Delivery(self.due)
            assert self.ledger.start_run("t", "last", idempotent=True, delivery=message).result == "started"
        self.client.delete(*self.client.keys(f"*{self.keys.prefix}*"))
        self.client.close()

    # The broker and a worker

    @rule(choice=choices, times=calls)
    def deliver(self, choice: int, times: int) -> None:
        """A worker receives a message."""
        message = self.messages[choice % len(self.messages)]
        new = Running(uuid.uuid4().hex, message.retries)
        expected = self.expected(message)
        for _ in range(times):
            begun = self.ledger.start_run("t", new.token, idempotent=True, delivery=message)
            assert begun.result == expected
        if expected == "started":
            assert self.run is None
            assert message.retries >= max(self.starts, default=0)
            self.run, self.leaving, self.holder, self.due = new, None, new.token, new.number
            self.starts[new.number] += 1
            assert self.starts[new.number] <= 1 + self.repeatable[new.number]

    def expected(self, message: Delivery) -> StartResult:
        if self.ended:
            return "ended"
        if message.retries < self.due:
            return "superseded"
        handed_on = message.retry_of == self.holder and message.retries > self.due
        return "running" if self.holder and not handed_on else "started"

    @precondition(lambda self: self.run is not None)
    @rule()
    def succeed(self) -> None:
        end(self.ledger, "t")
        self.run, self.ended, self.holder = None, True, ""

    @precondition(lambda self: self.run is not None)
    @rule()
    def retry(self) -> None:
        """A run sends its retry; it still has to release its lease."""
        run = self.run
        self.messages.append(Delivery(run.number + 1, run.token))
        self.run, self.leaving = None, run

    @precondition(lambda self: self.leaving is not None)
    @rule(times=calls)
    def release(self, times: int) -> None:
        run, self.leaving = self.leaving, None
        self.give_up(run, run.number + 1, times)

    @precondition(lambda self: self.run is not None)
    @rule(times=calls)
    def give_back(self, times: int) -> None:
        """A run has its message delivered again, as Reject(requeue=True) does."""
        run, self.run = self.run, None
        self.repeatable[run.number] += 1
        self.give_up(run, run.number, times)

    def give_up(self, run: Running, due: int, times: int) -> None:
        for _ in range(times):
            self.ledger.release("t", run.token, 0, retries=due)
        self.releases.append((run.token, due))
        if self.holder in (run.token, "") and due >= self.due:
            self.holder, self.due = "", due

    @precondition(lambda self: self.releases)
    @rule(choice=choices)
    def release_late(self, choice: int) -> None:
        """A request whose reply was lost long ago reaches Redis again; it changes nothing."""
        token, due = self.releases[choice % len(self.releases)]
        self.ledger.release("t", token, 0, retries=due)

    @precondition(lambda self: self.run or self.leaving)
    @rule()
    def crash(self) -> None:
        """The worker is killed during the run, or before it has released the lease."""
        run = self.run or self.leaving
        self.repeatable[run.number] += 1
        self.run = self.leaving = None

    # Time

    @precondition(lambda self: self.run is None)
    @rule()
    def expire(self) -> None:
        """A lease expires that is not renewed."""
        if self.leaving is not None:
            self.repeatable[self.leaving.number] += 1
        if self.client.hexists(self.keys.lease("t"), "token"):
            self.client.hset(self.keys.lease("t"), mapping={"until_ms": 0, "asked_ms": 0})
        self.holder = ""

    @precondition(lambda self: self.run is None and self.leaving is None)
    @rule()
    def forget(self) -> None:
        """The lease key expires."""
        self.client.delete(self.keys.lease("t"))
        self.holder = ""

    @precondition(lambda self: not self.ended)
    @rule()
    def redispatch(self) -> None:
        """The task is overdue; unless it runs, it is sent again for the try that is due."""
        self.client.zadd(self.keys.inflight("tests"), {"t": 0})
        if self.client.hexists(self.keys.lease("t"), "at_ms"):
            self.client.hset(self.keys.lease("t"), "at_ms", 0)
        swept = self.ledger.sweep_overdue(self.ledger.find_overdue(1), ())
        assert [task.in_flight.retries for task in swept] == ([] if self.holder else [self.due])
        for task in swept:
            self.messages.append(Delivery(task.in_flight.retries))
            self.ledger.acknowledge_sent([], [task.in_flight.entry("t")])


def test_the_tries_of_a_task_are_as_their_model(each_server: RedisServer, sequences: int) -> None:
    """Whatever is delivered, lost, killed or repeated: one run at a time, each try once, and the task can go on."""
    run_model(lambda: TaskMachine(each_server.url), sequences)

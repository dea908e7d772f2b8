"""A bus whose broker is the same Redis, with one event: what is there around the processes.

The clock, the broker's restoring of messages, and the effect of the handler are modelled. No process is killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from redis import Redis

from bridge import BridgeSettings, Event
from bridge.events.encoded import EncodedEvent
from bridge.handlers.leases import Leases
from bridge.storage import InFlightTask, LedgerEntry, Presence, Storage
from tests.support.checker.explore import Action
from tests.support.checker.steered import Process

#: The handler, and its task: there is one event.
HANDLER = "t.model"
QUEUE, CLOCK = "queue", "clock"
START_MS = 1_000_000_000_000
#: After this, every lease that is not renewed has ended and every task is overdue.
PAUSE_MS = 7_200_000
#: The state of Redis as text. Idle times and deliveries of pending entries depend on the time and are left out.
STATE = """
local out, keys = {}, redis.call("KEYS", "*")
table.sort(keys)
for _, key in ipairs(keys) do
    out[#out + 1] = key
    if redis.call("TYPE", key).ok == "stream" then
        for _, group in ipairs(redis.call("XINFO", "GROUPS", key)) do
            out[#out + 1] = group[8]
            for _, entry in ipairs(redis.call("XPENDING", key, group[2], "-", "+", 100)) do
                out[#out + 1] = entry[1] .. entry[2]
            end
        end
    else
        out[#out + 1] = redis.call("DUMP", key)
    end
end
return redis.sha1hex(table.concat(out, " "))
"""


class TaskMessage(NamedTuple):
    """A task message in the queue."""

    retries: int = 0
    retry_of: str = ""
    handler: str = HANDLER

    def encode(self) -> str:
        return json.dumps(self)


class Site:
    """One course of the model.

    Arguments:
        admin: A client of the server, which belongs to the model.
        settings: Of the bus.
        names: Names of scripts by their digests.
        retries: In how many runs the handler asks for a retry; the next one has its effect.
        restores: How often the broker may restore a message that is not acknowledged.
        pauses: How often time may pass until everything is overdue.
    """

    def __init__(
        self,
        admin: Redis,
        settings: BridgeSettings,
        names: dict[str, str],
        retries: int,
        restores: int,
        pauses: int,
    ) -> None:
        self.admin = admin
        self.settings = settings
        self.storage = Storage(admin, settings)
        self.processes: dict[str, Process] = {}
        self._names = names
        self._read_state = admin.register_script(STATE)
        self._retries = retries
        self._restores = restores
        self._pauses = pauses
        self._passed_ms = 0
        #: Messages that workers have taken and not acknowledged.
        self._unacked: list[TaskMessage] = []
        #: Messages that have to wait until the run in progress is over.
        self._waiting: list[TaskMessage] = []
        #: The leases of the runs in progress, by worker, and how many runs have started.
        self._running: dict[str, Leases] = {}
        self._started = 0
        #: The try that is due according to the last release of which a worker has got the reply.
        self._due = 0
        self._superseded = False
        self._published = False
        self._handlers = {HANDLER}
        self._effects = 0
        self.actions = {
            "the broker restores a message": Action(lambda: self._restores > 0 and bool(self._unacked), self._restore),
            "time passes": Action(lambda: self._pauses > 0, self._pause),
            "the lease ends": Action(lambda: bool(self._waiting) and not self._running, self._end_lease),
        }
        admin.flushdb()
        admin.set(CLOCK, START_MS)
        keys = self.storage.keys
        self.event = EncodedEvent.of(event := Event(type="a.b", id="e", timestamp=0), event.encode())
        admin.xgroup_create(keys.journal, settings.group, mkstream=True)

    # What the checker asks

    def state(self) -> object:
        """Return the state of Redis, of the broker and of the handler."""
        broker = (*sorted(self._unacked), None, *sorted(self._waiting))
        handler = (*sorted(self._running), self._started, self._due, self._effects)
        return self._read_state(), broker, handler, self._restores, self._pauses, self._passed_ms

    def check(self) -> None:
        """No effect is doubled, dispatch pushes no message twice, and no try runs alongside or after a later one."""
        assert self._effects <= 1, "the task has two effects"
        assert len(self._running) <= 1, "two runs of the task are in progress"
        if self._published:
            queue: Any = self.admin.lrange(QUEUE, 0, -1)
            assert len(queue) == len(set(queue)), "a task has two messages"
        assert not self._superseded, "a try has started after a later one was due"

    def check_end(self) -> None:
        """Nothing is lost: the task has had its effect, or is still the business of the journal or of the ledger."""
        keys, group = self.storage.keys, self.settings.group
        groups: Any = self.admin.xinfo_groups(keys.journal)
        (known,) = groups
        in_journal = known["pending"] > 0 or (self._published and known["last-delivered-id"] == b"0-0")
        listed: Any = self.admin.zrange(keys.inflight(group), 0, -1)
        lost = self._handlers - {task_id.decode() for task_id in listed}
        assert self._effects or in_journal or not lost, "a task is lost"

    # What happens from outside

    def _restore(self) -> None:
        self._restores -= 1
        self.push(self._unacked[0])

    def _pause(self) -> None:
        """Let time pass until everything is overdue; runs that are in progress renew their leases meanwhile."""
        self._pauses -= 1
        self._pass(PAUSE_MS)
        for leases in self._running.values():
            for task_id, token in leases._running.items():
                self.storage.ledger.renew(task_id, token)

    def _end_lease(self) -> None:
        """Let the time pass that messages wait which met a run, whose process may have remembered its end and gone."""
        self._pass(int(self.settings.lease_s * 1000) + 1)

    def _pass(self, ms: int) -> None:
        self._passed_ms += ms
        self.admin.set(CLOCK, START_MS + self._passed_ms)
        self._deliver_waiting()

    def _deliver_waiting(self) -> None:
        for message in self._waiting:
            self.push(message)
        self._waiting.clear()

    # What processes do

    def add(self, name: str, main: Callable[[Process], None]) -> None:
        """Start a process."""
        port = self.settings.address.hosts[0][1]
        self.processes[name] = Process(name, port, main, self._names)

    def publish(self, **handlers: str) -> None:
        """Begin with an event in the journal, and subscribers that know the handlers of each other.

        There must be no workers then.

        Arguments:
            handlers: The handler of each subscriber, by its name.
        """
        self._published = True
        self._handlers = set(handlers.values())
        for name, handler in handlers.items():
            self.storage.presence.report(Presence(name, handlers={handler: ["*"]}))
        self.admin.xadd(self.storage.keys.journal, {"id": "e", "type": "a.b", "event": self.event.data}, id="1-1")

    def send_directly(self) -> None:
        """Begin with a task that is dispatched already."""
        self.push(TaskMessage())
        self.storage.ledger.acknowledge_sent([], [ledger_entry("1-1")])

    def push(self, message: TaskMessage) -> None:
        """Put a message into the queue."""
        self.admin.lpush(QUEUE, message.encode())

    @property
    def queued(self) -> bool:
        """Whether there is a message in the queue."""
        return self.admin.llen(QUEUE) > 0

    @property
    def overdue(self) -> bool:
        """Whether time has passed until everything is overdue."""
        return self._passed_ms >= PAUSE_MS

    def take(self) -> TaskMessage:
        """Take a message out of the queue. The broker keeps it until it is acknowledged."""
        text: Any = self.admin.rpop(QUEUE)
        message = TaskMessage(*json.loads(text))
        self._unacked.append(message)
        return message

    def wait(self, message: TaskMessage) -> None:
        """Deliver a message again when the run in progress is over."""
        self._waiting.append(message)

    def acknowledge(self, worker: str, message: TaskMessage, *, rejected: bool) -> None:
        """Have the broker forget a message, or put it back into the queue."""
        self._unacked.remove(message)
        if rejected:
            self.push(message)
        if worker in self._running:
            self.run_is_over(worker)

    def run_starts(self, worker: str, message: TaskMessage, leases: Leases) -> None:
        """Record the start of a run."""
        self._superseded = self._superseded or message.retries < self._due
        self._started += 1
        self._running[worker] = leases

    def run_is_over(self, worker: str) -> None:
        """Record that the handler has returned; messages that waited for it are delivered again."""
        del self._running[worker]
        self._deliver_waiting()

    @property
    def retries_now(self) -> bool:
        """Whether the handler asks for a retry in the run that has started last."""
        return self._started <= self._retries

    def try_is_due(self, retries: int) -> None:
        """Record that a worker knows which try is due."""
        self._due = max(self._due, retries)

    def has_effect(self) -> None:
        """Record the effect of the handler."""
        self._effects += 1


def ledger_entry(entry_id: str, handler: str = HANDLER) -> LedgerEntry:
    """Return what the ledger keeps of the task of a handler."""
    return InFlightTask(handler, "e", entry_id, QUEUE).entry(handler)

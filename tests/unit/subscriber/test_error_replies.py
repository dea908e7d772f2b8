"""Every error of Redis x every request that a loop sends: all loops go on, nothing is lost and nothing is there twice.

A row is a bus on which Redis refuses, with one error, the first requests of every kind: those of the subscriber, of a
publisher, and of a worker's leases. All rows run at the same time, because most of their time is back-off.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.errors import BusUnavailable
from bridge.handlers.handler import registry, task_id_for
from bridge.handlers.leases import Leases
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.subscriber import Subscriber
from bridge.telemetry import Action
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.apps import make_app
from tests.support.queues import Queues
from tests.support.refusing_proxy import RefusingProxy, runs
from tests.support.replies import HEALING, PERMANENT
from tests.support.waiting import eventually

#: All buses run in one process at the same time, next to the other tests.
pytestmark = pytest.mark.timeout(240)

#: What the loops request.
SITES = {
    "listen": (b"PSUBSCRIBE",),
    "heartbeat": (b"PUBLISH",),
    "append": runs("append"),
    "dead letter": runs("write_dead_letter"),
    "scan": (b"SCAN",),
    "unseen": (b"EXISTS",),
    "event keys": (b"GETRANGE",),
    "read": (b"XREADGROUP",),
    "fencing token": (b"WATCH",),
    "dispatch": (b"LPUSH",),
    "sent again": runs("acknowledge_sent"),
    "elect": runs("elect"),
    "claim": runs("claim"),
    "trim": runs("trim"),
    "consumers": (b"XINFO", b"CONSUMERS"),
    "overdue": runs("find_overdue"),
    "sweep": runs("sweep_overdue"),
    "presence": runs("report_presence"),
    "publish": runs("publish"),
    "begin": runs("start_run"),
    "renew": runs("renew"),
    "end": runs("end"),
}
#: Those that are refused when the subscriber is ready. With all of them in a row, its back-off would be long.
LATER = frozenset({"dispatch", "dead letter", "elect", "claim", "trim", "consumers", "overdue", "sweep"})
#: How often a request of each kind is refused: dead letters have several writers.
_TIMES = dict.fromkeys(SITES, 1) | {"dead letter": 3}
#: Of an event key, this is no refusal: the key holds no event.
_NOT_OF_KEYS = {name: times for name, times in _TIMES.items() if name != "event keys"}
#: What requests to a group reply if it was deleted.
_LOST = ("NOGROUP No such key 'journal' or consumer group 'tests'", "UNBLOCKED the stream key no longer exists")
_OF_GROUP = dict.fromkeys(("read", "claim", "consumers"), 1)
#: How often a request of each kind is refused, by the error.
ERRORS = {
    **{text: _NOT_OF_KEYS if prefix == "WRONGTYPE" else _TIMES for prefix, text in (*HEALING, *PERMANENT)},
    **dict.fromkeys(_LOST, _OF_GROUP),
}
TIMEOUT_S = 60.0
FAST: dict[str, Any] = {
    "block_ms": 50,
    "heartbeat_interval_s": 2.0,  # or a busy process misses three of them, and in the gap broadcasts that are in no key
    "maintenance_interval_s": 0.2,
    "redispatch_after_s": 1.0,
    "lease_s": 3.0,
    "publish_timeout_s": 30.0,
}


@dataclass
class Outcome:
    """What was observed on one bus."""

    faults: Counter[str]
    journal: Counter[str]
    messages: Counter[str]
    dead_letters: Counter[str]
    pending: int
    threads: list[bool]
    counters: dict[str, int]


class Bus:
    """One bus, its subscriber, and all requests to it.

    Arguments:
        server: Bus and broker.
        error: What it replies to the first requests.
    """

    def __init__(self, server: RedisServer, error: str) -> None:
        self.prefix = f"test:{uuid.uuid4().hex[:12]}:"
        self._server = server
        self._error = error

    def run(self) -> Outcome:
        with (
            RefusingProxy(self._server.port, self._error) as proxy,
            Redis.from_url(self._server.url) as client,
            make_app(proxy.url, self.prefix) as app,
        ):
            settings = BridgeSettings.load(redis_url=proxy.url, channel_prefix=self.prefix, group="tests", **FAST)
            times = ERRORS[self._error]
            later = {name: number for name, number in times.items() if name in LATER}
            proxy.refuse_requests(SITES, Counter(times) - Counter(later))
            for number in range(3):
                self._keep(client, f"kept{number}")
            subscriber = Subscriber(app, settings, "one")
            subscriber.start()
            try:
                with EventBus(settings) as bus:
                    self._until_done(lambda: bus.publish("billing.paid", {"yes": 1}, id="lost"))
                    assert subscriber.ready.wait(TIMEOUT_S), "the subscriber is ready"
                    if "heartbeat" in times:  # until then, broadcasts that are in no key can be missed
                        eventually(lambda: subscriber.info().get("subscription_gaps"), "subscribed again", TIMEOUT_S)
                    proxy.refuse_requests(SITES, later)
                    self._cause_everything(bus, client)
                eventually(lambda: not proxy.not_refused, f"refused: {proxy.not_refused}", TIMEOUT_S)
                return self._outcome(client, proxy, subscriber)
            finally:
                subscriber.stop()

    def _cause_everything(self, bus: EventBus, client: Redis) -> None:
        for number in range(5):
            event = Event(type="a.b", id=f"published{number}", payload={"yes": 1} if number else {})
            self._until_done(lambda event=event: bus.publish(event))
        for number in range(5):
            client.publish(f"{self.prefix}a.b", f"no json {number}")
            event = self._keep(client, f"heard{number}")
            client.publish(f"{self.prefix}a.b", event.encode())
        queues = Queues(client, self.prefix)
        eventually(lambda: queues.length("own"), "a task is sent", TIMEOUT_S)
        assert client.delete(f"{queues.key_prefix}{self.prefix}own")
        eventually(lambda: queues.length("own"), "it is sent again after its message was lost", TIMEOUT_S)
        self._run_task(bus, task_id_for("tests", "lost", "t.own"))

    def _run_task(self, bus: EventBus, task_id: str) -> None:
        leases = Leases(bus)
        begun = self._until_done(lambda: leases.begin(task_id, idempotent=True))
        assert begun.result == "started"
        lease = bus.storage.keys.lease(task_id)
        with Redis.from_url(self._server.url) as client:
            first_until = client.hget(lease, "until_ms")
            eventually(lambda: client.hget(lease, "until_ms") not in (None, first_until), "it is renewed", TIMEOUT_S)
            leases.end(task_id)
            eventually(lambda: client.exists(bus.storage.keys.done(task_id)), "its end is recorded", TIMEOUT_S)
            leases.wait_for_ends(TIMEOUT_S)  # its thread may still read the reply, and the bus is closed next

    def _keep(self, client: Redis, event_id: str) -> Event:
        event = Event(type="a.b", id=event_id, payload={"yes": 1})
        client.set(f"{self.prefix}event:{event_id}", event.encode(), ex=3600)
        return event

    @staticmethod
    def _until_done(do: Callable[[], Any]) -> Any:
        """Repeat a call as a program would whose bus is unavailable."""
        for _ in range(20):
            try:
                return do()
            except BusUnavailable:
                continue
        raise AssertionError("it never succeeds")

    def _outcome(self, client: Redis, proxy: RefusingProxy, subscriber: Subscriber) -> Outcome:
        keys, queues, storage = Keys(self.prefix), Queues(client, self.prefix), subscriber._dispatch._journal
        letters = Storage(client, storage._settings).dead_letters

        def settled() -> bool:
            return (
                queues.length() >= len(MESSAGES)
                and len(letters.latest(100)) >= sum(DEAD_LETTERS.values())
                and not client.xpending(keys.journal, "tests")["pending"]
            )

        eventually(settled, "everything is processed and acknowledged", TIMEOUT_S)
        return Outcome(
            Counter({name: proxy.done[name] for name in SITES}),
            Counter(fields[b"id"].decode() for _, fields in client.xrange(keys.journal)),
            queues.tasks() + queues.tasks("own"),
            Counter(f"{one.reason} {one.event_id}".strip() for one in letters.latest(100)),
            int(client.xpending(keys.journal, "tests")["pending"]),
            [service._thread.is_alive() for service in subscriber._services],
            subscriber.info(),
        )


EVENTS = ["lost"] + [
    f"{name}{number}" for name, count in (("kept", 3), ("heard", 5), ("published", 5)) for number in range(count)
]
MESSAGES = [
    f"{handler} {'billing.paid' if event_id == 'lost' else 'a.b'} {event_id}"
    for handler in ("t.all", "t.chosen")
    for event_id in EVENTS
    if (handler, event_id) != ("t.chosen", "published0")
]
DEAD_LETTERS = Counter({"json": 5, "predicate_failed published0": 1})


class _Crashes(logging.Handler):
    """Collects the log lines about threads that failed."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "action", "") == Action.THREAD_FAILED.value:
            self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def crashes() -> Iterator[list[str]]:
    handler, logger = _Crashes(), logging.getLogger("bridge")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def rows() -> Iterator[Any]:
    """Yield the errors as parameters. With ``--quick``, only every fourth runs."""
    for number, error in enumerate(ERRORS):
        yield pytest.param(error, marks=[pytest.mark.thorough] if number % 4 else [], id=error[:40])


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, server: RedisServer, crashes: list[str]
) -> Iterator[dict[str, Future[Outcome]]]:
    """The outcome of each error whose test was selected."""
    selected = [
        item.callspec.params["error"]
        for item in request.session.items
        if "[" in item.name and item.module is request.module
    ]
    before = list(registry)
    registry.clear()
    for name in ("t.all", "t.chosen", "t.own"):
        registry.add(HANDLERS[name])
    with ThreadPoolExecutor(len(selected)) as pool:
        yield {error: pool.submit(Bus(server, error).run) for error in selected}
    registry.clear()
    for handler in before:
        registry.add(handler)


@pytest.mark.parametrize("error", list(rows()))
def test_every_loop_survives_every_error(outcomes: dict[str, Future[Outcome]], error: str) -> None:
    """Each kind of request was refused; afterwards every event, task and dead letter is there once."""
    outcome = outcomes[error].result()
    assert outcome.faults == Counter(ERRORS[error])
    assert outcome.journal == dict.fromkeys(EVENTS, 1)
    assert outcome.messages == dict.fromkeys([*MESSAGES, "t.own billing.paid lost"], 1)
    assert outcome.dead_letters == DEAD_LETTERS
    assert outcome.pending == 0
    assert all(outcome.threads)
    assert not {"lost", "dead_letters_lost"} & outcome.counters.keys()


def test_no_thread_failed(outcomes: dict[str, Future[Outcome]], crashes: list[str]) -> None:
    """No error left a loop: none had to be restarted."""
    assert [future.exception() for future in outcomes.values() if future.exception()] == []
    assert crashes == []

"""The table of ``bad_inputs.py``: one subscriber receives all of it, with a valid message after each invalid one."""

from __future__ import annotations

import base64
import gc
import json
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from bridge.bus.bus import EventBus
from bridge.config.settings import BridgeSettings
from bridge.errors import InvalidEvent, SettingsError
from bridge.events.event import Event
from bridge.handlers.handler import registry
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.subscriber import Subscriber
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.bad_inputs import COSTLY, LIMIT, PREFIX, ROWS, Case
from tests.support.queues import Queues
from tests.support.sources import names_of_tests
from tests.support.waiting import eventually

GROUP = "bad-input"
CASES = {
    f"{row}-{number}-{case.outcome}": case.filled_in(row, number)
    for row, cases in ROWS.items()
    for number, case in enumerate(cases)
}
DEAD = [case for case in CASES.values() if case.outcome not in ("taken", "again", "ignored")]
KEYS = Keys(PREFIX)

#: Rows that are not, or not only, about messages, and the tests that cover them.
ELSEWHERE = {
    24: ["test_invalid_values_are_named", "test_glob_characters_in_the_prefix_are_literal"],
    33: ["test_keys_that_outlive_the_marks_are_not_taken_again"],
    37: ["test_loops_end", "test_outside_a_task_ids_are_random_and_chains_begin"],
    38: ["test_cached_types_are_bounded"],
}


@cache
def valid(name: str) -> Case:
    """Return the valid neighbour of the case *name*; it follows the case on the same channel or as a key."""
    case, row = CASES[name], name.partition("-")[0]
    event = Event(id=f"next-{name}", type=f"r{row}")
    key = event.id.encode() if case.key else b""
    return Case("taken", event.encode(), event.to_dict(), event.type.encode(), key, case.late)


def channel_of(case: Case) -> bytes:
    return case.on[1:] if case.on.startswith(b"!") else PREFIX.encode() + case.on


def origin_of(case: Case) -> str:
    name = KEYS.event("").encode() + case.key if case.key else channel_of(case)
    return name.decode(errors="backslashreplace")[:500]


@dataclass
class Outcome:
    """The state after all messages were sent."""

    journal: dict[str, list[tuple[int, dict[str, Any]]]]
    letters: list[DeadLetter]
    counters: dict[str, int]
    messages: list[dict[str, Any]]
    pending: int
    keys_left: int
    began_ms: int
    ended_ms: int


def write_keys(client: Redis, cases: list[Case]) -> None:
    for case in cases:
        key = KEYS.event("").encode() + case.key
        if case.outcome == "wrong_key_type":
            client.hset(key, "field", "value")
        else:
            client.set(key, case.data, ex=3600)  # without TTL, only a recent timestamp would show that it is new


def journal_of(client: Redis) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    entries = defaultdict(list)
    for entry_id, fields in client.xrange(KEYS.journal):
        entries[fields[b"id"].decode()].append((int(entry_id.split(b"-")[0]), json.loads(fields[b"event"])))
    return entries


def send_all(client: Redis, subscriber: Subscriber) -> dict[str, int]:
    """Broadcast all cases, then cut the subscription and write the late keys; return the counters before the cut."""
    both = [case for name in CASES for case in (CASES[name], valid(name))]
    broadcast = [case for case in both if not case.key]
    for case in broadcast:
        client.publish(channel_of(case), case.data)
    received = sum(channel_of(case).startswith(PREFIX.encode()) for case in broadcast)
    neighbours = len(CASES) - sum(case.late for case in CASES.values())
    again = sum(case.outcome == "again" for case in CASES.values())

    def settled() -> bool:
        counts = subscriber.counters.snapshot()
        wanted = {"received": received, "invalid": len(DEAD), "no_handler": neighbours, "duplicate": again}
        enough = all(counts.get(name, 0) >= count for name, count in wanted.items())
        return enough and len(client.keys(KEYS.seen("next-*"))) >= neighbours

    with suppress(pytest.fail.Exception):  # each row reports what is missing
        eventually(settled, "all messages are accepted or refused", 10)
    counters = subscriber.counters.snapshot()
    write_keys(client, [case for case in both if case.late])
    scan, ended = subscriber._catch_up.scan, []

    def noting(*arguments: Any, **options: Any) -> None:
        scan(*arguments, **options)
        ended.append(True)

    subscriber._catch_up.scan = noting  # for scans that start from now on
    for connection in client.client_list():
        if connection["name"].startswith(f"bridge:{GROUP}:") and int(connection["psub"]):
            client.client_kill_filter(_id=connection["id"])
    with suppress(pytest.fail.Exception):  # first the repeated scan of the start, then the scan after the cut
        eventually(lambda: len(ended) >= 2, "catch-up has scanned all keys", 10)
    return counters


@pytest.fixture(scope="session")
def outcome(server: RedisServer) -> Outcome:
    """The outcome of all cases, which were sent to one subscriber that has stopped since."""
    before = list(registry)
    registry.clear()
    registry.add(HANDLERS["t.exact"])
    settings = BridgeSettings.load(redis_url=server.url, channel_prefix=PREFIX, group=GROUP, block_ms=100)
    with Redis.from_url(server.url) as client, Celery("bad", broker=server.url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": f"broker:{PREFIX}"}
        began_ms = time.time_ns() // 1_000_000
        with EventBus(settings) as bus:
            bus.publish("sentinel", id="zero")
        assert (
            Storage(client, settings).consumer("a").create_group("earliest")
        )  # a subscriber that creates it scans all keys again
        write_keys(client, [c for name in CASES for c in (CASES[name], valid(name)) if c.key and not c.late])
        subscriber = Subscriber(app, settings, "one")
        subscriber.start()
        try:
            assert subscriber.ready.wait(30)
            counters = send_all(client, subscriber)
            with suppress(pytest.fail.Exception):
                eventually(lambda: client.xpending(KEYS.journal, GROUP)["pending"] == 0, "all are acknowledged", 10)
            pending = client.xpending(KEYS.journal, GROUP)["pending"]
            letters = Storage(client, settings).dead_letters.latest(1000)
            left, messages = len(client.keys(KEYS.event("*"))), Queues(client, PREFIX).messages()
            ended_ms = time.time_ns() // 1_000_000
            return Outcome(journal_of(client), letters, counters, messages, pending, left, began_ms, ended_ms)
        finally:
            subscriber.stop()
            registry.clear()
            for handler in before:
                registry.add(handler)


@pytest.mark.parametrize("name", CASES)
def test_row(outcome: Outcome, name: str) -> None:
    """A message is accepted unchanged, or is a dead letter with reason and first bytes; its neighbour arrives."""
    case, neighbour = CASES[name], valid(name)
    assert [event for _, event in outcome.journal[neighbour.fields["id"]]] == [neighbour.fields]
    letters = [x for x in outcome.letters if x.origin == origin_of(case) and x.raw == case.data[:4096]]
    if case.outcome == "taken":
        ((_, event),) = outcome.journal[case.fields["id"]]
        assert {key: repr(event.get(key)) for key in case.fields} == {key: repr(x) for key, x in case.fields.items()}
    if case not in DEAD:
        assert letters == []
        return
    (letter,) = letters
    assert (letter.reason, letter.size) == (case.outcome, len(case.data))
    assert outcome.began_ms <= letter.at_ms <= outcome.ended_ms
    assert len(letter.detail) < 500
    assert letter.detail.isprintable(), "the detail is written to the log"


def test_nothing_else_happens(outcome: Outcome) -> None:
    """Journal and dead letters contain exactly the table, each case once; all messages are counted, without errors."""
    outcomes = [case.outcome for case in CASES.values()]
    expected = {case.fields["id"] for case in CASES.values() if case.outcome == "taken"}
    expected |= {f"next-{name}" for name in CASES} | {"zero"}
    assert {event_id: len(entries) for event_id, entries in outcome.journal.items() if entries} == dict.fromkeys(
        expected, 1
    )
    assert len(outcome.letters) == len(DEAD) == outcome.counters["invalid"]
    foreign = outcomes.count("ignored") - sum(case.late for case in CASES.values() if case.outcome == "ignored")
    heard = sum(not case.key for case in CASES.values())
    assert outcome.counters["received"] == 2 * heard - foreign
    assert outcome.counters["duplicate"] == outcomes.count("again") == 2
    assert "errors" not in outcome.counters
    assert "subscription_gaps" not in outcome.counters


def test_entries_carry_the_time_of_redis(outcome: Outcome) -> None:
    """25, 26: the journal orders and trims by the time at which it received an event, whatever its timestamp."""
    for entries in outcome.journal.values():
        for at_ms, _ in entries:
            assert outcome.began_ms - 1 <= at_ms <= outcome.ended_ms


def test_a_handler_gets_one_argument(outcome: Outcome) -> None:
    """29, 36: names in a payload never become arguments; a message is sent even if no worker knows its task."""
    bodies = [json.loads(base64.b64decode(message["body"])) for message in outcome.messages]
    events = {args[0]["id"]: (args, kwargs) for args, kwargs, _ in bodies}
    expected = [case for case in CASES.values() if case.on == b"dream.created"]
    assert set(events) == {case.fields["id"] for case in expected}
    for args, kwargs in events.values():
        assert (args, kwargs) == ([outcome.journal[args[0]["id"]][0][1]], {})


def test_events_without_handler_are_no_error(outcome: Outcome) -> None:
    """35: events without a handler are counted and acknowledged like all others."""
    assert outcome.pending == 0
    assert outcome.counters["no_handler"] >= len([case for case in CASES.values() if case.outcome == "taken"]) - 2
    assert "dead_lettered" not in outcome.counters


def test_keys_of_others_stay(outcome: Outcome) -> None:
    """33: catch-up deletes no key, whatever it contains."""
    assert outcome.keys_left == 2 * sum(bool(case.key) for case in CASES.values()) + 1


def test_counters_have_fixed_names(outcome: Outcome) -> None:
    """38: no type, id or reason from outside becomes the name of a counter."""
    assert set(outcome.counters) <= {
        "received",
        "appended",
        "caught_up",
        "duplicate",
        "repaired",
        "invalid",
        "no_handler",
        "dispatched",
    }


@pytest.mark.parametrize("data", COSTLY.values(), ids=list(COSTLY))
def test_time_is_bounded(data: bytes) -> None:
    """The most expensive messages of the largest size take less than a second and grow at most fourfold."""
    assert LIMIT // 2 < len(data) <= LIMIT or len(data) < 100
    costs, event = [], None
    gc.freeze()  # collections would also scan objects of earlier tests
    try:
        for _ in range(3):  # the best of three, as other processes may run
            began = time.thread_time()
            with suppress(InvalidEvent):
                event = Event.decode(data, max_bytes=LIMIT, channel_type="a.b")
            costs.append(time.thread_time() - began)
    finally:
        gc.unfreeze()
    assert min(costs) < 1.0
    assert event is None or len(event.encode()) <= 4 * len(data)


def test_prefixes_that_would_hear_everything_are_refused() -> None:
    """24: an empty prefix is refused; glob characters in a prefix are literal."""
    with pytest.raises(SettingsError, match="channel_prefix"):
        BridgeSettings.load(channel_prefix="")
    assert Keys("a*:").all_channels == r"a\*:*"


def test_all_rows_are_here() -> None:
    """Every row of the catalogue is in the table, or names the tests that cover it."""
    assert set(ROWS) | set(ELSEWHERE) == set(range(1, 39))
    assert BridgeSettings.load().max_event_bytes == LIMIT
    count = names_of_tests()
    assert [name for names in ELSEWHERE.values() for name in names if count[name] != 1] == []

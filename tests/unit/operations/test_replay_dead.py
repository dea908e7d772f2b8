"""Replays of dead letters on a real Redis: each is moved to the journal or stays a dead letter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from redis import Redis

from bridge import BridgeError, BridgeSettings, Event
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import Size
from bridge.storage.entries import EntryFilter
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually


def test_a_dead_letter_is_moved(replays: Replays, client: Redis) -> None:
    """A dead letter is moved to the journal in one step, for the handler that failed, and its bytes are subtracted."""
    for number in range(4):
        replays.park(number, reason="failure" if number % 2 else "payload")
    assert last(replays.dead(reason="fail*").run(FAST)).replayed == 2
    assert [(fields[b"id"], fields[b"handler"]) for fields in replays.replayed()] == [
        (b"n1", b"t.exact"),
        (b"n3", b"t.exact"),
    ]
    left = list(replays.letters.select(EntryFilter()))
    assert [letter.event_id for letter in left] == ["n0", "n2"]
    rows = client.xrange(replays.keys.dead("tests"))
    assert replays.letters.size() == Size(2, sum(len(value) for _, fields in rows for value in fields.values()), 0)


def test_dead_letters_that_fail_again_meanwhile_are_left(replays: Replays) -> None:
    """A dead letter that is written after a replay started is not part of it, so the replay ends."""
    for number in range(10):
        replays.park(number)
    steps = replays.dead().run(50)
    next(steps)
    replays.park(10)
    assert last(steps).replayed == 10
    assert [letter.event_id for letter in replays.letters.select(EntryFilter())] == ["n10"]


def test_a_letter_dropped_meanwhile_stays_out(replays: Replays) -> None:
    """A dead letter that is deleted after it was read for a replay is not replayed."""
    replays.park(0)
    replays.park(1)
    replay = replays.dead()
    progress = replay._begin()
    (step,) = replay._steps(progress, 100)
    replays.letters.drop([next(replays.letters.select(EntryFilter())).dead_letter_id])
    assert replay._take(progress, step).replayed == 1
    assert replays.ids() == ["n1"]


def test_letters_without_a_whole_event_stay(replays: Replays) -> None:
    """Dead letters that cannot become an event for a known handler are counted, reported and kept."""
    whole = Event(type="dream.created", id="whole").encode()
    long = Event(type="dream.created", id="long", payload="x" * 5000).encode()
    other = Event(type="dream.created", id="whole", payload="other").encode()
    refused = [
        ("json", b"{"),
        ("channel_mismatch", whole),
        ("hop_limit", long),
        ("hop_limit", whole),
        ("id_conflict", other),
    ]
    for reason, data in refused:
        replays.letters.add(DeadLetter.of_message(reason, "", "channel", data))
    replays.letters.add(DeadLetter("event_expired", "", "ledger", b"", event_id="e", handler="t.exact", task_id="t"))
    replays.park(1, handler="t.renamed")
    problems = {found.problem for found in replays.dead().remaining() if found.event is None}
    assert len(problems) == 7
    assert "this application has no handler t.renamed" in problems
    progress = last(replays.dead().run(FAST))
    assert (progress.replayed, progress.skipped) == (0, 7)
    assert replays.ids() == []
    assert [letter.reason for letter in replays.letters.select(EntryFilter())] == [
        "json",
        "channel_mismatch",
        "hop_limit",
        "hop_limit",
        "id_conflict",
        "event_expired",
        "failure",
    ]


def test_a_subscriber_without_the_handler_keeps_the_letter(
    replays: Replays, register_handlers, start_subscriber: StartSubscriber, queues: Queues
) -> None:
    """If a subscriber does not have the handler yet, the event is a dead letter again and can be replayed later."""
    replays.park(1)
    last(replays.dead("early").run(FAST))
    register_handlers("t.plain")
    old = start_subscriber("old")
    (letter,) = eventually(lambda: replays.letters.latest(10), "the dead letter is written again")
    assert (letter.reason, letter.handler, letter.event_id) == ("no_handler", "t.exact", "n1")
    assert letter.event().replay == "early"
    old.stop()
    register_handlers("t.exact")
    start_subscriber("new")
    last(replays.dead("late").run(FAST))
    eventually(lambda: queues.length() == 1, "the message is queued")
    assert queues.messages()[0]["headers"]["id"] == task_id_for("tests", "n1", "t.exact", "late")
    assert not replays.letters.latest(10)


def test_replays_at_once_move_each_letter_once(replays: Replays, server: RedisServer, settings: BridgeSettings) -> None:
    """Concurrent replays with different names move each dead letter exactly once."""
    for number in range(60):
        replays.park(number)
    all_begun = Barrier(3)  # a replay without any dead letter is an error

    def run(name: str) -> int:
        with Redis.from_url(server.url) as own:
            replay = Replays(own, settings).dead(name)
            replay._begin()
            all_begun.wait(30)
            return last(replay.run(200)).replayed

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(run, "abc")) == 60
    assert sorted(replays.ids()) == sorted(f"n{number}" for number in range(60))
    assert replays.letters.size() == Size(0, 0, 0)


def test_a_full_redis_loses_no_letter(own_server: RedisServer, settings: BridgeSettings) -> None:
    """While Redis refuses the entry, the dead letter is kept; afterwards the same replay resumes."""
    with Redis.from_url(own_server.url) as client:
        bench = Replays(client, settings.model_copy(update={"publish_timeout_s": 0.1}))
        bench.park(0)
        bench.park(1)
        steps = bench.dead().run(1000)
        progress = bench.dead()._begin()
        client.config_set("maxmemory", 1)
        with pytest.raises(BridgeError, match="maxmemory"):
            next(steps)
        assert bench.letters.size().count == 2
        assert not bench.ids()
        client.config_set("maxmemory", 0)
        assert bench.dead().progress() == progress
        assert last(bench.dead().run(FAST)).replayed == 2

"""Dead letters on a real Redis: their limits, their content, and how they are selected."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from redis.exceptions import RedisError

from bridge.config.settings import BridgeSettings
from bridge.events.event import Event
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.dead_letters import DeadLetters, EntryFilter, Size
from bridge.storage.in_flight import Ended, InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer


def letter(number: int, raw: bytes = b"{}", **more: str) -> DeadLetter:
    return DeadLetter(**{"reason": "json", "detail": str(number), "origin": f"o{number}", "raw": raw} | more)


def capped(settings: BridgeSettings, **limits: int) -> BridgeSettings:
    return settings.model_copy(update=limits)


def held_bytes(client: Redis, settings: BridgeSettings) -> int:
    """The sum of the sizes of all values in the stream, computed independently."""
    rows = client.xrange(Keys(settings.channel_prefix).dead(settings.group))
    return sum(len(value) for _, fields in rows for value in fields.values())


ALL = EntryFilter()


def details(letters: DeadLetters, selection: EntryFilter = ALL, **options: bool) -> list[str]:
    return [one.detail for one in letters.select(selection, **options)]


@pytest.fixture
def letters(client: Redis, settings: BridgeSettings) -> DeadLetters:
    return Storage(client, settings).dead_letters


def test_the_cap_by_count_is_exact(client: Redis, settings: BridgeSettings) -> None:
    """Exactly as many of the oldest dead letters as necessary are evicted, and they are counted."""
    letters = Storage(client, capped(settings, max_dead_letters=7)).dead_letters
    for number in range(20):
        assert letters.add(letter(number))
        assert letters.size().count == min(number + 1, 7)
    assert details(letters) == [str(number) for number in range(13, 20)]
    assert letters.size() == Size(7, held_bytes(client, settings), 13)


def test_the_cap_by_bytes_is_exact(client: Redis, settings: BridgeSettings) -> None:
    """After each dead letter, as many of the newest are kept as the limit in bytes allows, and no more."""
    limit = 5000
    letters = Storage(client, capped(settings, max_dead_letter_bytes=limit)).dead_letters
    unlimited = Storage(client, capped(settings, group="unlimited")).dead_letters
    for number in range(40):
        one = letter(number, b"x" * (number * 97 % 1500))
        letters.add(one)
        unlimited.add(one)
        sizes = [
            sum(map(len, fields.values()))
            for _, fields in client.xrevrange(Keys(settings.channel_prefix).dead("unlimited"))
        ]
        fitting = max(count for count in range(len(sizes) + 1) if sum(sizes[:count]) <= limit)
        assert letters.size() == Size(fitting, sum(sizes[:fitting]), number + 1 - fitting)
    assert letters.size().bytes == held_bytes(client, settings)
    assert letters.size().dropped > 20
    one = letter(99, b"x" * 400)
    letters.add(one)
    (newest,) = letters.latest(1)
    letters.drop([kept.dead_letter_id for kept in letters.select(ALL) if kept != newest])
    full = Storage(client, capped(settings, max_dead_letter_bytes=2 * letters.size().bytes)).dead_letters
    full.add(letter(98, b"x" * 400))
    assert full.size().count == 2  # exactly full


def test_a_letter_over_the_cap_is_dropped_and_counted(client: Redis, settings: BridgeSettings) -> None:
    """A dead letter larger than the limit for all is not kept, and evicts no other."""
    letters = Storage(client, capped(settings, max_dead_letter_bytes=1000)).dead_letters
    for number, size in ((1, 2000), (2, 2), (3, 2000), (4, 2)):
        assert letters.add(letter(number, b"x" * size))
        assert not letters.add(letter(number, b"x" * size))
    assert details(letters) == ["2", "4"]
    assert letters.size() == Size(2, held_bytes(client, settings), 2)


def test_writers_at_once_keep_the_caps(server: RedisServer, client: Redis, settings: BridgeSettings) -> None:
    """Concurrent writers and deletions never exceed the limits, and the byte count is correct afterwards."""
    limits = capped(settings, max_dead_letters=40, max_dead_letter_bytes=12_000)

    def write(writer: int) -> int:
        with Redis.from_url(server.url) as own:
            letters, dropped = Storage(own, limits).dead_letters, 0
            for number in range(100):
                letters.add(letter(1000 * writer + number, b"x" * (number * 37 % 700)))
                if number % 10 == 0:
                    dropped += letters.drop([one.dead_letter_id for one in letters.latest(2)])
                size = letters.size()
                assert size.count <= 40
                assert size.bytes <= 12_000
            return dropped

    with ThreadPoolExecutor(4) as pool:
        removed = sum(pool.map(write, range(4)))
    size = Storage(client, limits).dead_letters.size()
    assert removed > 0
    assert size == Size(size.count, held_bytes(client, settings), 400 - removed - size.count)
    assert size.bytes > 0


def test_many_letters_in_one_round_trip(own_server: RedisServer, settings: BridgeSettings) -> None:
    """Several dead letters are written in order, each once, within the limits, even after SCRIPT FLUSH."""
    with Redis.from_url(own_server.url) as client:
        letters = Storage(client, capped(settings, max_dead_letters=3)).dead_letters
        assert letters.add_many([]) == []
        assert letters.add_many([letter(1), letter(2), letter(1)]) == [True, True, False]
        client.script_flush()
        assert letters.add_many([letter(number) for number in (2, 3, 4, 5)]) == [False, True, True, True]
        assert details(letters) == ["3", "4", "5"]
        assert letters.size() == Size(3, held_bytes(client, settings), 2)


def test_a_count_that_is_lost_is_made_anew(client: Redis, settings: BridgeSettings, letters: DeadLetters) -> None:
    """If the dead letters or their counters are deleted, the limits are correct again after the next write."""
    keys = Keys(settings.channel_prefix)
    for number in range(3):
        letters.add(letter(number, b"x" * 100))
    client.delete(keys.dead_size("tests"))
    letters.drop([next(letters.select(ALL)).dead_letter_id])
    letters.add(letter(3))
    assert letters.size() == Size(3, held_bytes(client, settings), 0)
    client.delete(keys.dead("tests"))
    letters.add(letter(4))
    assert letters.size() == Size(1, held_bytes(client, settings), 0)


def test_counting_again_needs_no_memory(own_server: RedisServer, settings: BridgeSettings) -> None:
    """Large dead letters are counted one at a time when their counters are missing."""
    with Redis.from_url(own_server.url) as client:
        letters = Storage(client, settings).dead_letters
        for number in range(20):
            letters.add(letter(number, b"x" * 1_000_000))
        client.delete(Keys(settings.channel_prefix).dead_size("tests"))
        peak = client.info("memory")["used_memory_peak"]
        letters.add(letter(20))
        assert client.info("memory")["used_memory_peak"] - peak < 8_000_000
        assert letters.size() == Size(21, held_bytes(client, settings), 0)


def test_the_same_failure_is_written_once(letters: DeadLetters) -> None:
    """A repetition within five minutes changes nothing."""
    assert [letters.add(letter(1)), letters.add(letter(1)), letters.add(letter(2))] == [True, False, True]
    assert details(letters) == ["1", "2"]


def test_dropping(client: Redis, settings: BridgeSettings, letters: DeadLetters) -> None:
    """Deleted dead letters are removed once, together with their bytes, and are not counted as evicted."""
    for number in range(4):
        letters.add(letter(number))
    ids = [one.dead_letter_id for one in letters.select(ALL)]
    assert letters.drop(ids[1:3]) == 2
    assert letters.drop(ids[1:3]) == 0
    assert details(letters) == ["0", "3"]
    assert letters.size() == Size(2, held_bytes(client, settings), 0)


def test_every_text_can_be_kept(letters: DeadLetters) -> None:
    """Texts are shortened, tracebacks at their beginning; lone surrogates and NUL do not prevent a dead letter."""
    bad = "\ud800\0\u20ac"
    letters.add(DeadLetter(bad, bad + "d" * 9000, bad, b"\xff\0", handler=bad, traceback="t" * 9000 + "\u20ac the end"))
    (kept,) = letters.latest(10)
    shown = r"\ud800" + "\0\u20ac"
    assert (kept.reason, kept.origin, kept.handler, kept.raw) == (shown, shown, shown, b"\xff\0")
    assert kept.detail.startswith(shown)
    assert len(kept.detail.encode()) == 1000
    assert kept.traceback.endswith("t\u20ac the end")
    assert len(kept.traceback.encode()) == 2048


def test_a_letter_says_what_the_message_was(letters: DeadLetters) -> None:
    """An invalid message is kept up to 4 kB, with the size and hash of the whole; an event is kept completely."""
    data = b"{" * 10_000
    event = Event(type="dream.created", id="e", payload="x" * 10_000)
    letters.add(DeadLetter.of_message("json", "broken", "dreams", data))
    letters.add(DeadLetter.of_event("failure", "boom", event, event.encode(), "t.h", "task", attempts=3))
    message, failure = letters.select(ALL)
    assert (message.raw, message.size) == (data[:4096], 10_000)
    assert message.sha256 == hashlib.sha256(data).hexdigest()
    assert (failure.raw, failure.size, failure.attempts) == (event.encode(), len(event.encode()), 3)
    assert failure.sha256 == hashlib.sha256(event.encode()).hexdigest()
    assert abs(failure.at_ms - int(failure.dead_letter_id.partition("-")[0])) < 60_000


def test_a_letter_of_another_version_is_read(client: Redis, settings: BridgeSettings, letters: DeadLetters) -> None:
    """Missing and unknown fields do not hide a dead letter."""
    client.xadd(Keys(settings.channel_prefix).dead("tests"), {"reason": "old", b"new\xff": b"\xff", "raw": b"\xff"})
    (kept,) = letters.latest(10)
    assert (kept.reason, kept.raw, kept.handler, kept.size) == ("old", b"\xff", "", 0)


def test_selection(client: Redis, settings: BridgeSettings, letters: DeadLetters) -> None:
    """A dead letter must meet all conditions: globs, ids of dead letters or events, and a half-open time range."""
    dead = Keys(settings.channel_prefix).dead("tests")
    for number in range(1, 351):  # more than three pages
        fields = {"reason": "json" if number % 2 else "payload", "detail": number, "event_id": f"e{number}"}
        client.xadd(dead, fields | {"event_type": f"t.{number % 10}", "handler": f"h{number % 3}"}, id=f"{number}-1")
    assert details(letters) == [str(number) for number in range(1, 351)]
    assert details(letters, newest_first=True) == [str(number) for number in range(350, 0, -1)]
    assert details(letters, EntryFilter(since_ms=100, until_ms=103)) == ["100", "101", "102"]
    assert details(letters, EntryFilter(since_ms=349), newest_first=True) == ["350", "349"]
    assert details(letters, EntryFilter(ids=frozenset({"e5", "300-1", "6"}))) == ["5", "300"]
    both = EntryFilter(reason="j*", event_type="t.[13]", handler="h1", until_ms=50)
    assert details(letters, both) == ["1", "13", "31", "43"]
    with pytest.raises(ValueError, match="not closed"):
        EntryFilter(reason="[")


@pytest.mark.parametrize("written_before", [False, True])
def test_no_task_ends_without_its_letter(
    own_server: RedisServer, settings: BridgeSettings, written_before: bool
) -> None:
    """While a dead letter cannot be written, because of full memory or a wrong key type, its task does not end."""
    with Redis.from_url(own_server.url) as client:
        keys, letters, ledger = (
            Keys(settings.channel_prefix),
            Storage(client, settings).dead_letters,
            Storage(client, settings).ledger,
        )
        ledger.acknowledge_sent([], [InFlightTask("h", "e", "1-1").entry("t1")])
        doomed = letter(1, task_id="t1")
        if written_before:
            letters.add(doomed)
        else:
            client.set(keys.dead(settings.group), "no stream")
            with pytest.raises(RedisError, match="WRONGTYPE"):
                letters.end_task_with(doomed, Ended())
            client.delete(keys.dead(settings.group))
        client.config_set("maxmemory", 1)
        with pytest.raises(RedisError, match="maxmemory"):
            letters.end_task_with(doomed, Ended())
        assert (ledger.size(), ledger.has_ended("t1")) == (1, False)
        client.config_set("maxmemory", 0)
        for _ in range(2):
            letters.end_task_with(doomed, Ended())
            assert (ledger.size(), ledger.has_ended("t1"), details(letters)) == (0, True, ["1"])


def test_an_empty_id_means_none(letters: DeadLetters) -> None:
    """An empty id, as from an unset shell variable, does not match the dead letters that have no event."""
    letters.add(letter(1))
    assert details(letters, EntryFilter(ids=frozenset({""}))) == []


def test_a_full_redis_keeps_what_it_has(own_server: RedisServer, settings: BridgeSettings) -> None:
    """A dead letter that a full Redis refuses evicts no older one."""
    with Redis.from_url(own_server.url) as client:
        letters = Storage(client, capped(settings, max_dead_letters=2)).dead_letters
        for number in range(2):
            letters.add(letter(number))
        client.config_set("maxmemory", 1)
        with pytest.raises(RedisError, match="maxmemory"):
            letters.add(letter(2))
        assert details(letters) == ["0", "1"]

"""Entries that one subscriber hands over to another, step by step: joining, dying, stopping, and lost replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.entries import Entry
from bridge.storage.keys import Keys
from bridge.storage.server_time import server_ms
from bridge.storage.storage import Storage
from bridge.subscriber.dispatch.router import Batch
from bridge.testing.redis_server import RedisServer
from tests.support.apps import make_app
from tests.support.members import Member
from tests.support.proxy import Proxy
from tests.support.queues import Queues

EVENTS = 10


Join = Callable[..., Member]


@pytest.fixture
def queued(broker: RedisServer, prefix: str) -> Iterator[Callable[[], tuple[dict[str, int], int]]]:
    """Return of how many events each task has a message, and how many messages are repetitions."""

    def count() -> tuple[dict[str, int], int]:
        tasks = queues.tasks()
        return dict(Counter(name.split()[0] for name in tasks)), tasks.total() - len(tasks)

    with Redis.from_url(broker.url) as client:
        queues = Queues(client, prefix)
        yield count


@pytest.fixture
def journal(client: Redis, settings: BridgeSettings) -> Iterator[str]:
    """The key of a journal with ten events of the type ``billing.paid``, and the group ``tests``."""
    Storage(client, settings).consumer("first").create_group("earliest")
    with EventBus(settings) as bus:
        for number in range(EVENTS):
            bus.publish("billing.paid", id=f"n{number}")
    return Keys(settings.channel_prefix).journal


@pytest.fixture
def join(broker: RedisServer, settings: BridgeSettings, prefix: str, journal: str) -> Iterator[Join]:
    """Start a member of the group with these handlers; it reports its presence unless it should not."""
    joined: list[Member] = []
    settings = settings.model_copy(update={"block_ms": 1})
    with make_app(broker.url, prefix) as app:
        app.finalize()

        def start(name: str, *handlers: str, report: bool = True, url: str = "") -> Member:
            over = settings.model_copy(update={"redis_url": SecretStr(url)} if url else {})
            member = Member(over, app, name, *handlers)
            joined.append(member)
            if report:
                member.report()
            return member

        yield start
        for member in joined:
            member.close()


@pytest.fixture
def pending(client: Redis, journal: str) -> Callable[[], dict[str, int]]:
    """Return how many entries each consumer holds."""

    def count() -> dict[str, int]:
        rows = client.xinfo_consumers(journal, "tests")
        return {row["name"].decode(): row["pending"] for row in rows if row["pending"]}

    return count


Queued = Callable[[], tuple[dict[str, int], int]]
Pending = Callable[[], dict[str, int]]


def in_between(member: Member, do: Callable[[], None]) -> None:
    """Let *member* read entries and route them, and do something else before it dispatches them."""
    route = member.dispatcher._router.route

    def route_and_do(entries: Sequence[Entry]) -> Batch:
        batch = route(entries)
        if entries:
            do()
        return batch

    member.dispatcher._router.route = route_and_do  # type: ignore[method-assign]
    member.steps(2)
    member.dispatcher._router.route = route  # type: ignore[method-assign]


def test_a_member_that_joins_in_between(
    join: Join, queued: Queued, pending: Pending, broker: RedisServer, settings: BridgeSettings
) -> None:
    """Entries that were routed before another member joined are not acknowledged without its handlers."""
    first, second = join("first", "t.all"), join("second", "t.plain", report=False)
    in_between(first, second.report)
    assert pending() == {"first": EVENTS}, "nothing was acknowledged"
    first.steps()
    assert pending() == {"second": EVENTS}
    second.steps()
    assert pending() == {}
    copies = 0 if broker.url == settings.url else EVENTS
    assert queued() == ({"t.all": EVENTS, "t.plain": EVENTS}, copies), "copies have the same task ids"


def test_a_member_with_the_same_handlers(
    join: Join, queued: Queued, pending: Pending, client: Redis, settings: BridgeSettings
) -> None:
    """A member that joins or leaves with the handlers of the others interrupts none of them."""
    first, second = join("first", "t.plain", "t.all"), join("second", "t.all", "t.plain", report=False)
    token = client.get(Keys(settings.channel_prefix).fencing_token("tests"))
    in_between(first, second.report)
    second.report()
    second.leave(differs=False)
    assert client.get(Keys(settings.channel_prefix).fencing_token("tests")) == token
    assert pending() == {}
    assert queued() == ({"t.all": EVENTS, "t.plain": EVENTS}, 0)


def test_a_chain_of_members(join: Join, queued: Queued, pending: Pending, client: Redis, journal: str) -> None:
    """An entry goes from member to member until all handlers have it; each gets it once."""
    members = [join("first", "t.all"), join("second", "t.plain", "t.all"), join("third", "t.glob", "t.plain")]
    client.xadd(journal, {"event": Event(type="dream.image.rendered", id="dream").encode()})
    for _ in range(6):
        for member in members:
            member.dispatcher.step()
    assert pending() == {}
    assert queued() == ({"t.all": EVENTS + 1, "t.plain": EVENTS, "t.glob": 1}, 0)
    assert client.hlen(Keys(journal.strip("{").partition("}")[0]).handed_over("tests")) == 0


def test_a_member_dies_with_entries(join: Join, queued: Queued, pending: Pending, client: Redis, prefix: str) -> None:
    """They are claimed, with the names of the handlers that have them; the members of that time get the rest."""
    first, doomed = join("first", "t.all"), join("doomed", "t.plain")
    first.steps()
    assert pending() == {"doomed": EVENTS}
    client.hdel(Keys(prefix).subscribers("tests"), "doomed")  # it was killed, and some time has passed
    heir = join("heir", "t.plain")
    assert first.consumer.claim(0, b"0-0", 100).taken == EVENTS
    first.dispatcher.reread_pending()
    first.steps()
    assert pending() == {"heir": EVENTS}
    heir.steps()
    assert (pending(), queued()) == ({}, ({"t.all": EVENTS, "t.plain": EVENTS}, 0))
    assert client.hlen(Keys(prefix).handed_over("tests")) == 0
    assert doomed.counters.snapshot() == {}


def test_a_member_that_is_slow_or_has_crashed_is_remembered(
    join: Join, pending: Pending, client: Redis, prefix: str
) -> None:
    """A member without a report for less than a minute still gets entries, unless a live one has the handlers."""
    first, silent = join("first", "t.all"), join("silent", "t.plain")
    ago(client, prefix, "silent", 50_000)
    first.steps()
    assert pending() == {"silent": EVENTS}
    heir = join("heir", "t.plain")
    assert first.consumer.claim(0, b"0-0", 100).taken == EVENTS
    first.dispatcher.reread_pending()
    first.steps()
    assert pending() == {"heir": EVENTS}
    for name in ("silent", "heir"):
        ago(client, prefix, name, 61_000)
    assert first.consumer.claim(0, b"0-0", 100).taken == EVENTS
    first.dispatcher.reread_pending()
    first.steps()
    assert pending() == {}
    assert (silent.counters.snapshot(), heir.counters.snapshot()) == ({}, {})


def ago(client: Redis, prefix: str, name: str, ms: int) -> None:
    """Let the last report of a member be so old."""
    key = Keys(prefix).subscribers("tests")
    _, _, report = (client.hget(key, name) or b"").partition(b" ")
    client.hset(key, name, b"%d %b" % (server_ms(client.time()) - ms, report))


def test_nobody_has_the_handlers_any_more(
    join: Join, queued: Queued, pending: Pending, client: Redis, prefix: str
) -> None:
    """A minute after a member left, entries that wait for it are acknowledged, and nothing is kept about them."""
    first, other = join("first", "t.all"), join("other", "t.plain")
    first.steps()
    other.leave()
    ago(client, prefix, "other", 61_000)
    assert first.consumer.claim(0, b"0-0", 100).taken == EVENTS
    first.dispatcher.reread_pending()
    first.steps()
    assert (pending(), queued()) == ({}, ({"t.all": EVENTS}, 0))
    assert client.hlen(Keys(prefix).handed_over("tests")) == 0


def test_a_member_stops_with_entries(join: Join, queued: Queued, pending: Pending) -> None:
    """A member that stops dispatches first what was handed over to it until the others knew."""
    first, second = join("first", "t.all"), join("second", "t.plain")
    second.dispatcher._transaction.open()
    first.steps()
    assert pending() == {"second": EVENTS}
    second.leave()
    second.dispatcher.finish()
    assert (pending(), queued()) == ({}, ({"t.all": EVENTS, "t.plain": EVENTS}, 0))


def test_a_member_stops_in_between(join: Join, pending: Pending) -> None:
    """What was routed before a member left is routed again; another member that is alive gets it instead."""
    first, second = join("first", "t.all"), join("second", "t.plain")
    join("third", "t.plain", "t.own")
    in_between(first, second.leave)
    assert "second" not in pending()
    first.steps()
    assert pending() == {"third": EVENTS}


@pytest.mark.parametrize("first_comes_later", [False, True])
def test_the_only_member_with_a_handler_is_restarted(
    join: Join, queued: Queued, pending: Pending, *, first_comes_later: bool
) -> None:
    """Its events are not acknowledged by members without the handler meanwhile; its successor dispatches them."""
    first = None if first_comes_later else join("first", "t.all")
    second = join("second", "t.plain")
    second.leave(differs=not first_comes_later)
    second.dispatcher.finish()
    first = first or join("first", "t.all")
    first.steps()
    assert pending() == {"second": EVENTS}
    heir = join("heir", "t.plain")
    assert first.consumer.claim(0, b"0-0", 100).taken == EVENTS
    first.dispatcher.reread_pending()
    first.steps()
    heir.steps()
    assert (pending(), queued()) == ({}, ({"t.all": EVENTS, "t.plain": EVENTS}, 0))


def test_what_is_known_of_trimmed_entries_is_forgotten(
    join: Join, pending: Pending, client: Redis, prefix: str, journal: str
) -> None:
    """The note about an entry goes when the entry was trimmed; those about others stay."""
    first, _ = join("first", "t.all"), join("other", "t.plain")
    first.steps()
    notes = Keys(prefix).handed_over("tests")
    assert client.hlen(notes) == EVENTS
    kept = client.xrange(journal)[7][0]
    client.xtrim(journal, minid=kept, approximate=False)
    first.consumer.forget_removed()
    assert sorted(client.hkeys(notes))[0] == kept
    assert client.hlen(notes) == 3
    client.xtrim(journal, maxlen=0, approximate=False)
    first.consumer.forget_removed()
    assert not client.exists(notes)


@pytest.mark.parametrize("lost", [b"EXEC", b"XREADGROUP"])
def test_a_lost_reply(
    join: Join, queued: Queued, pending: Pending, server: RedisServer, broker: RedisServer, lost: bytes
) -> None:
    """Whichever reply a member loses while it hands entries over, each handler gets each event."""
    with Proxy(server.port) as proxy:
        first, second = join("first", "t.all", url=proxy.url), join("second", "t.plain")
        proxy.drop_reply(lost)
        with pytest.raises(RedisConnectionError):
            first.steps(3)
        first.steps()
        second.steps()
        first.steps()
    assert pending() == {}
    tasks, copies = queued()
    assert tasks == {"t.all": EVENTS, "t.plain": EVENTS}
    assert copies == 0 or broker is not server

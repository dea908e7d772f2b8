"""Entries that pass from a consumer that stands still to another one, over a network that loses replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bridge import BridgeSettings, EventBus
from bridge.broker.outbox import Outbox
from bridge.errors import JournalLost
from bridge.handlers.handler import registry
from bridge.redis.client import connect
from bridge.storage import Storage
from bridge.storage.lua import script
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.members import Members
from bridge.telemetry.counters import Counters
from bridge.testing.redis_server import RedisServer
from tests.support.apps import make_app
from tests.support.backlog import Backlog
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.waiting import eventually


@pytest.fixture
def backlog(each_server: RedisServer, prefix: str) -> Iterator[Backlog]:
    """Twenty events in the journal."""
    settings = BridgeSettings.load(redis_url=each_server.url, channel_prefix=prefix, group="tests", block_ms=1)
    with EventBus(settings) as bus, Redis.from_url(each_server.url) as client:
        Storage(client, settings).consumer("first").create_group("earliest")
        made = Backlog(bus, client, settings, Queues(client, prefix))
        made.publish(20)
        yield made


@pytest.fixture
def proxy(each_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(each_server.port) as running:
        yield running


@pytest.fixture
def storage_of(backlog: Backlog) -> Iterator[Callable[[str], Storage]]:
    """The bus over a connection to an address."""
    clients: list[Redis] = []

    def open_one(url: str) -> Storage:
        same = {"channel_prefix": backlog.bus.settings.channel_prefix, "group": "tests", "block_ms": 1}
        settings = BridgeSettings.load(redis_url=url, **same)
        clients.append(connect(settings))
        return Storage(clients[-1], settings)

    yield open_one
    for client in clients:
        client.close()


def dispatcher_of(storage: Storage, app: Celery, name: str) -> Dispatcher:
    app.finalize()
    outbox = Outbox(app, storage.settings)
    dead_letters, members = DeadLetterWriter(storage, Counters()), Members(storage, registry, name)
    return Dispatcher(storage, outbox, registry, dead_letters, Counters(), storage.consumer(name), members)


def hold(first: Dispatcher) -> None:
    """Let a consumer read entries and make its transaction, and stop before it is sent."""
    first.step()  # it holds no entries yet
    first._reader.limit = 100
    entries = first._reader.read()
    assert len(entries) == 20
    first._reader.ahead = entries


def dispatch_until_empty(second: Dispatcher, backlog: Backlog) -> None:
    def step() -> bool:
        try:
            second.step()
        except (RedisConnectionError, JournalLost):
            return False
        return backlog.queues.length() >= 20 and not backlog.pending()

    eventually(step, "the second consumer has dispatched what it took")


@pytest.mark.parametrize("lost", ["claim", b"WATCH", b"XREADGROUP", b"EXEC"])
def test_a_consumer_thaws_after_its_entries_were_claimed(
    register_handlers,
    backlog: Backlog,
    proxy: Proxy,
    storage_of: Callable[[str], Storage],
    each_server: RedisServer,
    prefix: str,
    lost: str | bytes,
) -> None:
    """Whichever reply the second consumer loses, each task has one message after the first one has thawed."""
    register_handlers("t.all")
    with make_app(each_server.url, prefix) as app, make_app(proxy.url, prefix) as far_app:
        near, far = storage_of(each_server.url), storage_of(proxy.url)
        first, second = dispatcher_of(near, app, "first"), dispatcher_of(far, far_app, "second")
        second.step()  # it has a connection and a fencing token
        assert far.consumer("second").claim(60_000, b"0-0", 100).taken == 0  # this loads the script
        hold(first)
        needle = lost if isinstance(lost, bytes) else str(script(far.client, lost).sha).encode()
        proxy.drop_reply(needle)
        try:
            far.consumer("second").claim(0, b"0-0", 100)
        except RedisConnectionError:
            assert lost == "claim"
        second.reread_pending()
        dispatch_until_empty(second, backlog)
        assert proxy.done["reply dropped"] == 1
        first.finish()
        first.step()
        second.close()
        first.close()
    backlog.all_once()


def test_a_consumer_thaws_after_its_group_was_created_again(
    register_handlers, backlog: Backlog, storage_of: Callable[[str], Storage], each_server: RedisServer, prefix: str
) -> None:
    """Entries that were read in a group that was deleted since are dispatched by the new group only."""
    register_handlers("t.all")
    storage = storage_of(each_server.url)
    with make_app(each_server.url, prefix) as app:
        first, second = dispatcher_of(storage, app, "first"), dispatcher_of(storage, app, "second")
        hold(first)
        assert backlog.client.xgroup_destroy(backlog.journal, "tests")
        assert storage.consumer("second").create_group("earliest")
        assert not storage.consumer("first").create_group("earliest"), "it exists already"
        dispatch_until_empty(second, backlog)
        first.finish()
        first.step()
        second.close()
        first.close()
    backlog.all_once()

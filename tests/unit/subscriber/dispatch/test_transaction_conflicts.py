"""Dispatch transactions step by step: entries claimed by others, lost replies, queues and servers that refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from celery import Celery
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from bridge import BridgeSettings, EventBus
from bridge.broker.messages import Message
from bridge.broker.outbox import Outbox
from bridge.errors import JournalLost
from bridge.events.encoded import EncodedEvent
from bridge.handlers.handler import registry
from bridge.redis.client import connect
from bridge.storage import Storage
from bridge.storage.entries import Entry
from bridge.storage.journal_consumer import JournalConsumer
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.dispatch.transaction import DispatchTransaction, TransactionResult
from bridge.subscriber.members import Members
from bridge.telemetry.counters import Counters
from bridge.testing.redis_server import RedisServer
from tests.handlers import HANDLERS
from tests.support.apps import make_app
from tests.support.backlog import Backlog
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.waiting import eventually


@pytest.fixture
def consumer(client: Redis, settings: BridgeSettings) -> JournalConsumer:
    """Consumer "one" of a group that starts with the first event."""
    made = Storage(client, settings).consumer("one")
    made.create_group("earliest")
    return made


@pytest.fixture
def backlog(consumer: JournalConsumer, client: Redis, settings: BridgeSettings, queues: Queues) -> Iterator[Backlog]:
    """Twenty events in the journal."""
    with EventBus(settings) as bus:
        made = Backlog(bus, client, settings, queues)
        made.publish(20)
        yield made


@pytest.fixture
def transaction(settings: BridgeSettings, consumer: JournalConsumer, backlog: Backlog) -> Iterator[DispatchTransaction]:
    """The dispatch transaction of consumer "one"."""
    with connect(settings) as connected:
        storage = Storage(connected, settings)
        members = Members(storage, registry, "one")
        made = DispatchTransaction(connected, consumer, backlog.ledger, storage.presence, members)
        yield made
        made.close()


Begin = Callable[..., None]


@pytest.fixture
def begin(app: Celery, settings: BridgeSettings) -> Begin:
    """Begin to dispatch entries, as messages for one handler, and to read more entries."""
    app.finalize()
    outbox = Outbox(app, settings)

    def message(entry: Entry) -> Message:
        return outbox.prepare(HANDLERS["t.all"], EncodedEvent.read(entry.data or b""), entry.entry_id)

    def begin_one(transaction: DispatchTransaction, entries: Sequence[Entry], read: int = 0) -> None:
        transaction.begin([entry.entry_id for entry in entries], [message(entry) for entry in entries], read)

    return begin_one


def test_one_request_hands_over_and_reads_on(
    transaction: DispatchTransaction, consumer: JournalConsumer, begin: Begin, backlog: Backlog
) -> None:
    """The reply to a request contains the entries after those it dispatches, or none at the end of the journal."""
    transaction.open()
    begin(transaction, consumer.read(8, 10), read=8)
    first = transaction.finish()
    assert (first.committed, first.ownership_lost, len(first.entries)) == (True, False, 8)
    begin(transaction, first.entries, read=8)
    second = transaction.finish()
    assert len(second.entries) == 4
    begin(transaction, second.entries, read=8)
    assert transaction.finish() == TransactionResult(committed=True, ownership_lost=False, entries=[])
    assert backlog.sent() == backlog.ids()
    backlog.all_once()


def test_entries_claimed_by_another(
    transaction: DispatchTransaction,
    consumer: JournalConsumer,
    begin: Begin,
    settings: BridgeSettings,
    backlog: Backlog,
) -> None:
    """A transaction whose entries were claimed by another consumer has no effect, and its result reports that."""
    transaction.open()
    entries = consumer.read(10, 10)
    assert Storage(backlog.client, settings).consumer("two").claim(0, b"0-0", 100).taken == 10
    begin(transaction, entries, read=5)
    answer = transaction.finish()
    assert (answer.committed, answer.ownership_lost, len(answer.entries)) == (False, True, 5)
    assert (backlog.queues.length(), backlog.ledger.size(), backlog.pending()) == (0, 0, 15)
    transaction.open()
    held = consumer.pending_entries(100)
    assert held == answer.entries, "claimed entries belong to the other consumer"
    begin(transaction, held)
    assert transaction.finish().committed
    assert (backlog.queues.length(), backlog.ledger.size(), backlog.pending()) == (5, 5, 10)


def test_a_transaction_comes_late_to_entries_that_wait(
    consumer: JournalConsumer, begin: Begin, server: RedisServer, settings: BridgeSettings, backlog: Backlog
) -> None:
    """A late transaction fails even before its entries are sent again; they are sent over the new connection."""
    with Proxy(server.port) as proxy, Redis.from_url(proxy.url, protocol=2) as client:
        storage = Storage(client, settings)
        members = Members(storage, registry, "one")
        transaction = DispatchTransaction(client, consumer, backlog.ledger, storage.presence, members)
        transaction.open()
        entries = consumer.read(100, 10)
        proxy.keep_request(b"EXEC")

        def hand_over() -> TransactionResult:
            begin(transaction, entries)
            return transaction.finish()

        with pytest.raises(RedisConnectionError):
            hand_over()
        assert proxy.done["request kept"] == 1
        transaction.open()
        assert consumer.pending_entries(100) == entries
        proxy.deliver()
        eventually(lambda: proxy.done["late reply"], "the request was delivered and answered")
        assert (backlog.pending(), backlog.queues.length()) == (20, 0)
        assert hand_over() == TransactionResult(committed=True, ownership_lost=False, entries=[])
        transaction.close()
    backlog.all_once()


def test_a_queue_that_is_no_list(
    transaction: DispatchTransaction, consumer: JournalConsumer, begin: Begin, backlog: Backlog
) -> None:
    """A queue key that is not a list is detected before every transaction: nothing is acknowledged or in the ledger."""
    queue = f"{backlog.queues.key_prefix}{backlog.queues.prefix}celery"
    transaction.open()
    entries = consumer.read(100, 10)
    for value in ("x", "y"):
        backlog.client.set(queue, value)
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            begin(transaction, entries)
        assert not transaction.under_way
    assert (backlog.pending(), backlog.ledger.size()) == (20, 0)
    backlog.client.delete(queue)
    transaction.open()
    begin(transaction, entries)
    assert transaction.finish().committed
    backlog.all_once()


def test_a_queue_that_is_replaced(
    transaction: DispatchTransaction, consumer: JournalConsumer, begin: Begin, backlog: Backlog
) -> None:
    """If a queue key changes its type after the check, the tasks are in the ledger and will be sent again."""
    transaction.open()
    begin(transaction, consumer.read(10, 10), read=10)
    second = transaction.finish().entries
    backlog.client.set(f"{backlog.queues.key_prefix}{backlog.queues.prefix}celery", "x")
    begin(transaction, second)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        transaction.finish()
    assert (backlog.pending(), backlog.ledger.size()) == (0, 20)
    transaction.open()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        begin(transaction, second)
    assert (backlog.pending(), backlog.ledger.size()) == (0, 20)


def test_a_group_that_is_gone(
    transaction: DispatchTransaction, consumer: JournalConsumer, begin: Begin, backlog: Backlog
) -> None:
    """If the group is destroyed, the transaction is still executed, and reading on raises JournalLost."""
    transaction.open()
    entries = consumer.read(10, 10)
    backlog.client.xgroup_destroy(backlog.journal, "tests")
    begin(transaction, entries, read=10)
    with pytest.raises(JournalLost):
        transaction.finish()
    assert not transaction.under_way
    assert len(backlog.sent()) == 10


def test_a_redis_without_memory(register_handlers, own_server: RedisServer, prefix: str) -> None:
    """While Redis is full, entries are neither acknowledged nor in the ledger; later each event is sent once."""
    register_handlers("t.all")
    settings = BridgeSettings.load(redis_url=own_server.url, channel_prefix=prefix, group="tests", block_ms=1)
    with make_app(own_server.url, prefix) as app, EventBus(settings) as bus, connect(settings) as client:
        app.finalize()
        backlog, storage = Backlog(bus, client, settings, Queues(client, prefix)), Storage(client, settings)
        members, outbox = Members(storage, registry, "one"), Outbox(app, settings)
        dead_letters, consumer = DeadLetterWriter(storage, Counters()), storage.consumer("one")
        dispatcher = Dispatcher(storage, outbox, registry, dead_letters, Counters(), consumer, members)
        storage.consumer("a").create_group("earliest")
        backlog.publish(200)

        def refused() -> bool:
            try:
                dispatcher.step()
            except OutOfMemoryError:
                return True
            return False

        assert client.config_set("maxmemory", 1)
        for _ in range(3):
            eventually(refused, "Redis refuses a batch")
        assert backlog.unacknowledged()
        assert (backlog.queues.length(), backlog.ledger.size()) == (0, 0)
        assert client.config_set("maxmemory", 0)
        eventually(lambda: not refused() and backlog.queues.length() == 200 and not backlog.pending(), "all are sent")
        dispatcher.close()
        backlog.all_once()
        assert backlog.sent() == backlog.ids()

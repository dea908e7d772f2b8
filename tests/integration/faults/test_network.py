"""Connections that lose replies, hang, are very slow or break, at the worst moment for each command."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from celery import Celery
from redis import Redis

from bridge import BusUnavailable, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.lua import script
from bridge.storage.storage import Storage
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.processes import Processes
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.waiting import eventually


@pytest.fixture
def bus(server: RedisServer, prefix: str) -> Iterator[EventBus]:
    """A bus that is not connected through the proxy."""
    with EventBus(redis_url=server.url, channel_prefix=prefix) as connected:
        yield connected


@pytest.fixture(params=["stamped", "portable"])
def other_broker(request: pytest.FixtureRequest, far_app: Celery) -> Celery:
    """An application whose broker the bridge takes for another Redis than that of the bus, or for no Redis."""
    if request.param == "portable":
        far_app.conf.broker_transport = "benchmarks.setting:AnyTransport"
    return far_app


def sha(client: Redis, name: str) -> bytes:
    """Return the part of an EVALSHA that identifies this script."""
    return str(script(client, name).sha).encode()


def publish(bus: EventBus, *ids: str) -> None:
    bus.publish_many([Event(type="a.b", id=event_id) for event_id in ids])


def shout(client: Redis, prefix: str, event: Event) -> None:
    """Publish like an external publisher."""
    client.set(f"{prefix}event:{event.id}", event.encode(), ex=60)
    client.publish(f"{prefix}{event.type}", event.encode())


def dispatched(queues: Queues, *ids: str) -> None:
    """Wait for a message for each id; assert that all messages of one id have the same task id."""
    wanted = {f"t.all a.b {event_id}" for event_id in ids}
    eventually(lambda: wanted <= set(queues.tasks()), f"{len(ids)} events are dispatched")
    assert set(queues.tasks()) == wanted
    assert len({message["headers"]["id"] for message in queues.messages()}) == len(ids)


def test_the_reply_to_a_publication_is_lost(proxy: Proxy, client: Redis, prefix: str) -> None:
    """After a lost reply, a publication is retried: one entry, one broadcast, and no duplicate is reported."""
    with EventBus(redis_url=proxy.url, channel_prefix=prefix) as bus, client.pubsub() as listener:
        listener.psubscribe(f"{prefix}*")
        bus.publish("a.b", id="first")
        proxy.drop_reply(sha(client, "publish"))
        publication = bus.publish("a.b", id="second")
        assert proxy.done["reply dropped"] == 1
        assert not publication.duplicate
        proxy.drop_reply(sha(client, "publish"))
        many = bus.publish_many([Event(type="a.b", id=f"n{number}") for number in range(50)])
        assert proxy.done["reply dropped"] == 2
        assert [publication.duplicate for publication in many] == [False] * 50
        assert client.xlen(Keys(prefix).journal) == 52
        heard = []
        while message := listener.get_message(timeout=1):
            heard += [message["channel"]] if message["type"] == "pmessage" else []
        assert len(heard) == 52


@pytest.mark.parametrize("command", [b"XREADGROUP", "acknowledge_sent", "claim", "trim", "find_overdue", "elect"])
def test_a_reply_to_the_dispatcher_is_lost(
    register_handlers,
    start_subscriber: StartSubscriber,
    proxy: Proxy,
    client: Redis,
    prefix: str,
    queues: Queues,
    bus: EventBus,
    command: str | bytes,
) -> None:
    """After any lost reply from the bus, the dispatcher dispatches every event, always with the same task id."""
    register_handlers("t.all")
    subscriber = start_subscriber(redis_url=proxy.url, maintenance_interval_s=0.1)
    publish(bus, "before")
    dispatched(queues, "before")
    proxy.drop_reply(sha(client, command) if isinstance(command, str) else command)
    publish(bus, *(f"n{number}" for number in range(100)))
    eventually(lambda: proxy.done["reply dropped"], "the reply is lost")
    eventually(lambda: subscriber.info().get("errors"), "the error is counted")
    dispatched(queues, "before", *(f"n{number}" for number in range(100)))
    eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"] == 0, "all are acknowledged")
    assert Storage(client, bus.settings.model_copy(update={"group": "tests"})).ledger.size() == 101
    assert queues.length() <= 101 + 32, "at most the current batch is sent again"


def test_the_reply_to_an_append_is_lost(
    register_handlers, start_subscriber: StartSubscriber, proxy: Proxy, client: Redis, prefix: str, queues: Queues
) -> None:
    """After a lost reply, a received event is appended again and is in the journal once."""
    register_handlers("t.all")
    start_subscriber(redis_url=proxy.url)
    proxy.drop_reply(sha(client, "append"))
    shout(client, prefix, Event(type="a.b", id="heard"))
    eventually(lambda: proxy.done["reply dropped"], "the reply is lost")
    dispatched(queues, "heard")
    assert client.xlen(Keys(prefix).journal) == 1


def test_a_reply_of_the_broker_is_lost(
    register_handlers,
    start_subscriber: StartSubscriber,
    proxy: Proxy,
    other_broker: Celery,
    queues: Queues,
    bus: EventBus,
) -> None:
    """After a lost reply from the broker, the batch is sent again: two messages with the same task id."""
    register_handlers("t.all")
    subscriber = start_subscriber(app=other_broker)
    publish(bus, "before")
    dispatched(queues, "before")
    proxy.drop_reply(b"LPUSH")
    publish(bus, "during")
    eventually(lambda: proxy.done["reply dropped"], "the reply is lost")
    eventually(lambda: subscriber.info().get("errors"), "the error is counted")
    dispatched(queues, "before", "during")
    eventually(lambda: queues.tasks()["t.all a.b during"] == 2, "it is sent again")


def test_a_batch_cut_midway(
    register_handlers,
    start_subscriber: StartSubscriber,
    proxy: Proxy,
    other_broker: Celery,
    client: Redis,
    prefix: str,
    queues: Queues,
    bus: EventBus,
) -> None:
    """If the broker's connection breaks within a batch, nothing is acknowledged, and the whole batch is sent again."""
    register_handlers("t.all")
    subscriber = start_subscriber(app=other_broker)
    publish(bus, "before")
    dispatched(queues, "before")
    proxy.cut_after(b"LPUSH", 500)  # within the first message, regardless of how many entries were read together
    ids = [f"n{number}" for number in range(100)]
    publish(bus, *ids)
    eventually(lambda: proxy.done["request cut"], "the batch is cut")
    eventually(lambda: subscriber.info().get("errors"), "the error is counted")
    dispatched(queues, "before", *ids)
    assert not client.exists(Keys(prefix).dead("tests"))


@pytest.mark.timeout(90)
def test_a_subscriber_killed_between_sending_and_acknowledging(
    processes: Processes, proxy: Proxy, client: Redis, prefix: str, queues: Queues, bus: EventBus
) -> None:
    """After a crash between sending and acknowledging, the messages are sent again with the same task ids."""
    fast = {"BRIDGE_CLAIM_IDLE_S": "0.5", "BRIDGE_MAINTENANCE_INTERVAL_S": "0.2"}
    victim = processes.celery("bus", "subscribe", name="victim", BRIDGE_REDIS_URL=proxy.url, **fast)
    eventually(lambda: "Subscriber subscribe@" in processes.log("victim"), "the subscriber has started", 30)
    proxy.hold_request(sha(client, "acknowledge_sent"))
    bus.publish_many([Event(type="dream.made", id=f"n{number}") for number in range(10)])
    eventually(lambda: proxy.done["request held"], "it sends its acknowledgement")
    first = queues.tasks()
    assert first.total() > 0
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    processes.celery("bus", "subscribe", name="second", **fast)
    eventually(lambda: queues.length() == 10 + first.total(), "the messages are sent again", 30)
    eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"] == 0, "all are acknowledged")
    assert len({message["headers"]["id"] for message in queues.messages()}) == 10
    processes.worker("w1", "--no-subscriber", BRIDGE_LEASE_S="1")  # a copy waits this long for the lease of another
    eventually(lambda: client.llen(f"{prefix}effects") >= 10, "all tasks have run", 30)
    eventually(
        lambda: queues.length() == 0 and not client.hlen(f"broker:{prefix}unacked"), "the copies are skipped", 30
    )
    assert sorted(client.lrange(f"{prefix}effects", 0, -1)) == sorted(
        f"glob n{number}".encode() for number in range(10)
    )


def test_a_subscription_that_dies_in_silence(
    register_handlers, start_subscriber: StartSubscriber, proxy: Proxy, client: Redis, prefix: str, queues: Queues
) -> None:
    """A subscription that receives no heartbeat is renewed, and the missed events are found."""
    register_handlers("t.all")
    subscriber = start_subscriber(redis_url=proxy.url, heartbeat_interval_s=0.3)
    proxy.silence(b"PSUBSCRIBE")
    assert proxy.done["silenced"] == 1
    shout(client, prefix, Event(type="a.b", id="missed"))
    eventually(lambda: subscriber.info().get("subscription_gaps"), "it subscribes again")
    shout(client, prefix, Event(type="a.b", id="heard"))
    dispatched(queues, "missed", "heard")


@pytest.mark.timeout(150)
def test_a_frozen_redis(
    register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer, prefix: str, queues: Queues
) -> None:
    """While the bus is frozen, publishers get an error and a subscriber stops within 10 s; the other one recovers."""
    register_handlers("t.all")
    # When Redis resumes, it delivers entries to the subscriber that has left; they are claimed from it.
    quick = {"redis_url": own_server.url, "claim_idle_s": 1, "maintenance_interval_s": 0.2}
    staying, leaving = start_subscriber("staying", **quick), start_subscriber("leaving", **quick)
    with EventBus(redis_url=own_server.url, channel_prefix=prefix, publish_timeout_s=1) as bus:
        publish(bus, "before")
        dispatched(queues, "before")
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(BusUnavailable, match="imeout"):
                bus.publish("a.b", id="during")
            assert time.monotonic() - began < 1.5
            began = time.monotonic()
            leaving.stop()
            assert time.monotonic() - began < 10
            eventually(lambda: staying.info().get("errors", 0) >= 2, "the remaining subscriber counts errors", 30)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        publish(bus, "during", "after")
        dispatched(queues, "before", "during", "after")


def test_a_large_message_that_dribbles(
    register_handlers, start_subscriber: StartSubscriber, proxy: Proxy, client: Redis, prefix: str, queues: Queues
) -> None:
    """A message of 5 MB that takes longer than any heartbeat is read completely, on the same connection."""
    register_handlers("t.all")
    subscriber = start_subscriber(redis_url=proxy.url, heartbeat_interval_s=0.5, max_event_bytes=6_000_000)
    event = Event(type="a.b", id="large", payload="x" * 5_000_000)
    proxy.dribble(64_000, 0.05)
    client.publish(f"{prefix}a.b", event.encode())  # without a key, so this connection is the only source
    eventually(lambda: proxy.done["dribbled"] > 70, "the transfer is slow")
    dispatched(queues, "large")
    assert not {"errors", "subscription_gaps"} & subscriber.info().keys()


def test_a_subscriber_too_slow_for_its_buffer(
    processes: Processes, own_server: RedisServer, prefix: str, queues: Queues
) -> None:
    """A subscriber that Redis disconnects for a full output buffer finds the missed events in their keys."""
    with Redis.from_url(own_server.url) as admin:
        admin.config_set("client-output-buffer-limit", "pubsub 1mb 256kb 5")
        slow = processes.celery("bus", "subscribe", name="slow", BRIDGE_REDIS_URL=own_server.url)

        def subscribed() -> int:
            return len(admin.client_list(_type="pubsub"))

        eventually(admin.pubsub_numpat, "it has subscribed", 30)
        shout(admin, prefix, Event(type="dream.made", id="before"))
        eventually(lambda: queues.length() == 1, "it dispatches")
        slow.send_signal(signal.SIGSTOP)
        many = 0
        while subscribed() and many < 3000:  # Valkey 9 does not count large messages, which it does not copy
            shout(admin, prefix, Event(type="dream.made", id=f"n{many}", payload="x" * 15_000))
            many += 1
        assert not subscribed()
        slow.send_signal(signal.SIGCONT)
        eventually(lambda: len(queues.tasks()) == 1 + many, "all are dispatched", 30)


def test_a_failover(
    register_handlers, start_subscriber: StartSubscriber, own_server: RedisServer, prefix: str, queues: Queues
) -> None:
    """After a failover to a replica, all replicated events are dispatched, and publishers and subscribers continue."""
    register_handlers("t.all")
    with RedisServer() as replica, Proxy(own_server.port) as address, Redis.from_url(replica.url) as admin:
        admin.replicaof("127.0.0.1", str(own_server.port))
        subscriber = start_subscriber(redis_url=address.url)
        with EventBus(redis_url=address.url, channel_prefix=prefix, publish_timeout_s=60) as bus:
            publish(bus, *(f"before{number}" for number in range(50)))
            eventually(lambda: bus.client.wait(1, 1000) == 1, "the replica has them", 30)
            publishing = threading.Thread(target=lambda: publish(bus, *(f"during{number}" for number in range(50))))
            os.kill(own_server.pid, signal.SIGKILL)
            address.target = replica.port
            address.cut()
            publishing.start()
            eventually(lambda: subscriber.info().get("errors"), "the error is counted")
            admin.replicaof("NO", "ONE")
            publishing.join(30)
            publish(bus, "after")
            names = [f"{name}{number}" for name in ("before", "during") for number in range(50)]
            dispatched(queues, "after", *names)

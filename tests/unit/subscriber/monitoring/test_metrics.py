"""Metrics as Prometheus reads them: each outcome is counted once, with few labels and consistent totals."""

from __future__ import annotations

from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import Ended
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from bridge.subscriber.monitoring.metrics_server import OUTCOMES
from bridge.telemetry.counters import OTHER_TYPES
from tests.support.apps import StartSubscriber
from tests.support.proxy import Proxy
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.scrape import Scrape
from tests.support.waiting import eventually


def shout(client: Redis, prefix: str, event: Event) -> None:
    """Broadcast an event as an external program does."""
    client.publish(f"{prefix}{event.type}", event.encode())


def test_what_becomes_of_events(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    prefix: str,
    port: int,
    scrape: Scrape,
) -> None:
    """Each event is counted under its type and its outcome."""
    register_handlers("t.exact", "t.glob", "t.chosen")
    keys = Keys(prefix)
    missed = Event(type="dream.missed", id="missed", payload={"yes": False})
    client.set(keys.event("missed"), missed.encode(), ex=60)
    old = Event(type="dream.old", id="old", timestamp=1)
    client.set(keys.event("old"), old.encode())
    start_subscriber(metrics_port=port)
    bus.publish("dream.created", {"yes": True}, id="ours")
    foreign = Event(type="dream.foreign", id="foreign", payload={"yes": False})
    for _ in range(3):
        shout(client, prefix, foreign)
    bus.publish("other.refused", {"yes": False}, id="refused")
    bus.publish("other.odd", None, id="odd")
    client.publish(f"{prefix}dream.broken", "{")
    last(Replays(client, bus.settings).journal("r", event_type="dream.created").run(FAST))

    wanted: dict[str, dict[str, float]] = {
        "received": {
            "dream.created": 1,
            "dream.foreign": 3,
            "other.refused": 1,
            "other.odd": 1,
            "dream.broken": 1,
        },
        "duplicate": {"dream.created": 1, "dream.foreign": 2, "other.refused": 1, "other.odd": 1},
        "appended": {"dream.foreign": 1},
        "caught_up": {"dream.missed": 1},
        "invalid": {"": 1},
        "dispatched": {"dream.created": 6, "dream.foreign": 1, "dream.missed": 1},
        "replayed": {"dream.created": 1},
        "dead_lettered": {"other.odd": 1},
    }

    def found() -> dict[str, dict[str, float]]:
        page = scrape()
        return {outcome: page.events(outcome) for outcome in wanted}

    eventually(lambda: found() == wanted, "all events are counted", 10)
    # These are counted last in a batch.
    eventually(lambda: scrape().value("bridge_dispatch_delay_seconds_count") == 8, "the delays are counted", 5)
    page = scrape()
    risen = {one.labels["outcome"] for one in page.samples if "outcome" in one.labels and one.value}
    assert risen == {*wanted, "stale"}
    assert set(page.events("stale")) == {""}  # once for each scan of the keys
    assert page.value("bridge_tasks_in_flight") == 8
    assert page.value("bridge_dead_letters") == page.value("bridge_dead_letters_written_total") == 2


def test_events_without_a_handler(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, port: int, scrape: Scrape
) -> None:
    """Events without a handler are counted once, under their type, and cause no task message."""
    register_handlers("t.plain")
    start_subscriber(metrics_port=port)
    bus.publish("dream.created")
    bus.publish("billing.paid")
    eventually(lambda: scrape().events("dispatched") == {"billing.paid": 1}, "one message is counted", 5)
    # If both are in one batch, messages are counted first.
    eventually(lambda: scrape().events("no_handler") == {"dream.created": 1}, "the other event is counted", 5)
    assert scrape().events("dispatched") == {"billing.paid": 1}


def test_what_maintenance_does(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    prefix: str,
    port: int,
    scrape: Scrape,
    queues: Queues,
) -> None:
    """Claims, lost and trimmed entries, redispatches and their dead letters are counted."""
    register_handlers("t.exact")
    journal = Keys(prefix).journal
    for number in range(3):
        bus.publish("dream.created", id=f"n{number}")
    second = client.xrange(journal)[1][0]
    client.xgroup_create(journal, "tests", id="0")
    client.xgroup_createconsumer(journal, "tests", "idle")
    client.xreadgroup("tests", "dead", {journal: ">"}, count=2)
    client.xdel(journal, second)
    times = {"claim_idle_s": 0.5, "maintenance_interval_s": 0.05, "redispatch_after_s": 0.05, "max_redispatches": 1}
    start_subscriber(metrics_port=port, event_ttl_s=3, **times)

    def done() -> bool:
        client.delete(f"broker:{prefix}celery")  # simulates a broker that loses messages
        return scrape().value("bridge_events_total", outcome="dead_lettered") == 2

    eventually(done, "all tasks are dead letters", 10)
    page = scrape()
    assert (
        page.events("dispatched") == page.events("redispatched") == page.events("dead_lettered") == {"dream.created": 2}
    )
    assert page.events("lost") == {"": 1}
    assert page.value("bridge_entries_claimed_total") == 1
    assert page.value("bridge_consumers_removed_total") == 2
    assert page.value("bridge_tasks_in_flight") == 2, "they may still run"
    assert page.value("bridge_dead_letters_written_total") == 2
    eventually(lambda: scrape().events("trimmed") == {"": 2}, "expired entries are trimmed", 10)


def test_gaps_and_outages(
    register_handlers, start_subscriber: StartSubscriber, proxy: Proxy, bus: EventBus, port: int, scrape: Scrape
) -> None:
    """A lost connection counts as an error, its recovery as a reconnect, and a new subscription as an interruption."""
    register_handlers("t.exact")
    start_subscriber(redis_url=proxy.url, metrics_port=port)
    page = scrape()
    names = (
        "subscription_gaps",
        "reconnects",
        "errors",
        "dispatch_backpressure",
        "journal_lost",
        "entries_claimed",
        "consumers_removed",
    )
    assert [page.value(f"bridge_{name}_total") for name in names] == [0] * 7, "all counters exist from the start"
    proxy.cut()
    eventually(lambda: scrape().value("bridge_subscription_gaps_total") == 1, "the interruption is counted", 5)
    bus.publish("dream.created")
    eventually(lambda: (scrape().value("bridge_reconnects_total") or 0) >= 1, "the reconnect is counted", 10)
    assert (scrape().value("bridge_errors_total") or 0) >= 1


def test_dead_letters_that_tasks_write(
    register_handlers,
    start_subscriber: StartSubscriber,
    client: Redis,
    settings: BridgeSettings,
    port: int,
    scrape: Scrape,
) -> None:
    """Dead letters that tasks write are counted once in Redis, and not by the subscriber."""
    register_handlers("t.exact")
    start_subscriber(metrics_port=port)
    letters = Storage(client, settings).dead_letters
    for task_id in ("one", "two", "two"):
        letters.end_task_with(DeadLetter("failure", "", "journal", b"", task_id=task_id), Ended())
    page = scrape()
    assert (page.value("bridge_dead_letters_written_total"), page.value("bridge_dead_letters")) == (2, 2)
    assert page.events("dead_lettered") == page.events("invalid") == {}
    letters.drop([letter.dead_letter_id for letter in letters.latest(10)])
    page = scrape()
    assert (page.value("bridge_dead_letters_written_total"), page.value("bridge_dead_letters")) == (2, 0)


def test_the_same_dead_letter_twice_is_one(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, port: int, scrape: Scrape
) -> None:
    """A repeated dead letter is not counted, so the counters of subscribers match the dead letters."""
    register_handlers("t.exact")
    for _ in range(3):
        client.xadd(Keys(prefix).journal, {"id": "e", "type": "a.b", "event": "{"})
    start_subscriber(metrics_port=port)
    eventually(lambda: scrape().value("bridge_backlog_events") == 0, "all entries are processed", 5)
    page = scrape()
    assert page.events("dead_lettered") == {"": 1}
    assert page.value("bridge_dead_letters_written_total") == 1


def test_types_without_end(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, prefix: str, port: int, scrape: Scrape
) -> None:
    """A hundred types have separate labels; of all further types only those that handlers name."""
    register_handlers("t.exact")
    start_subscriber(metrics_port=port)
    odd = [b"x" * 5000, b"\xff\xfe", b'quo"te\nnew line\\', b"", "träume".encode()]
    for name in odd:
        client.publish(prefix.encode() + name, "{")
    for number in range(150):
        shout(client, prefix, Event(type=f"junk.n{number}"))
    shout(client, prefix, Event(type="dream.created"))
    eventually(lambda: scrape().value("bridge_events_total", outcome="received") == 156, "all messages are received")
    eventually(lambda: scrape().events("dispatched") == {"dream.created": 1}, "the known type keeps its label")
    page = scrape()
    received = page.events("received")
    assert len(received) == 100 + 3  # plus the known type, all others, and the empty name
    assert received["dream.created"] == 1
    assert received[OTHER_TYPES] == 156 - 102
    assert max(map(len, received)) < 100, "names longer than any valid type are no labels"
    assert page.events("no_handler").keys() <= {*received}


def test_what_redis_counts_outlives_a_subscriber(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    settings: BridgeSettings,
    port: int,
    scrape: Scrape,
) -> None:
    """After a restart the counters of the process start at zero; those in Redis continue and never decrease."""
    register_handlers("t.exact")
    first = start_subscriber("one", metrics_port=port)
    bus.publish("dream.created", id="e")
    eventually(lambda: scrape().events("dispatched") == {"dream.created": 1}, "the event is dispatched", 5)
    ledger, task_id = Storage(client, settings).ledger, task_id_for("tests", "e", "t.exact")
    ledger.start_run(task_id, "run", idempotent=True)
    Storage(client, settings).dead_letters.end_task_with(
        DeadLetter("failure", "", "journal", b"", task_id=task_id), Ended()
    )
    before = scrape()
    first.stop()
    start_subscriber("two", metrics_port=port)
    after = scrape()
    assert after.events("dispatched") == {}
    for name in (
        "bridge_dead_letters_written_total",
        "bridge_task_start_delay_seconds_count",
        "bridge_task_start_delay_seconds_sum",
    ):
        assert after.value(name) == before.value(name)
    assert after.value("bridge_task_start_delay_seconds_count") == 1
    assert after.value("bridge_info", consumer="two") == 1


def test_every_group_is_told_by_every_subscriber(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, port: int, scrape: Scrape
) -> None:
    """Each subscriber reports all groups, so the backlog of a group without subscribers is visible."""
    register_handlers("t.exact")
    start_subscriber("one", group="other").stop()
    bus.publish_many([Event(type="dream.created") for _ in range(5)])
    start_subscriber("two", metrics_port=port)
    eventually(lambda: scrape().value("bridge_backlog_events", group="tests") == 0, "its own events are dispatched", 5)
    page = scrape()
    assert page.value("bridge_backlog_events", group="other") == 5
    assert (page.value("bridge_backlog_oldest_seconds", group="other") or 0) > 0
    assert page.value("bridge_subscribers", group="other") == 0
    eventually(lambda: scrape().value("bridge_subscribers", group="tests") == 1, "the subscriber is counted", 5)


def test_labels_are_few(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, port: int, scrape: Scrape
) -> None:
    """Metric names begin with bridge_, each metric has a help text, and no id is a label."""
    register_handlers("t.exact")
    start_subscriber(metrics_port=port)
    bus.publish("dream.created", id="an-id-of-an-event")
    eventually(lambda: scrape().events("dispatched"), "the event is dispatched", 5)
    eventually(lambda: scrape().value("bridge_queue_messages") is not None, "the queues are measured", 10)
    page = scrape()
    assert all(family.name.startswith("bridge_") and len(family.documentation) > 5 for family in page.families)
    labels = {label for sample in page.samples for label in sample.labels}
    assert labels == {"group", "consumer", "version", "outcome", "type", "le", "queue"}
    assert "an-id-of-an-event" not in page.text
    assert all(outcome in page.text for outcome in OUTCOMES)

"""The behaviour of the bridge on each combination of bus and broker: one suite for all of them."""

from __future__ import annotations

from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.operations.groups import Groups
from bridge.storage.keys import Keys
from bridge.storage.status import read_status
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually
from tests.system.topologies.sites import OTHER_GROUP, Site, Waiting


def publish(bus: EventBus, *ids: str) -> None:
    bus.publish_many([Event(type="dream.created", id=event_id) for event_id in ids])


def message(event_id: str, task: str = "t.exact") -> str:
    return f"{task} dream.created {event_id}"


def test_a_publication_is_in_key_journal_and_broadcast(site: Site, bus: EventBus, client: Redis, prefix: str) -> None:
    """A publication is in key, journal and broadcast once per id; another event with the same id changes nothing."""
    with site.client.pubsub() as listener:
        listener.psubscribe(f"{prefix}*")
        eventually(lambda: listener.get_message(timeout=1), "the subscription is active")
        first = bus.publish("dream.created", {"n": 1}, id="a")
        assert bus.publish("dream.created", {"n": 1}, id="a").duplicate
        assert bus.publish("dream.created", {"n": 2}, id="a").conflict
        heard = eventually(lambda: listener.get_message(timeout=1), "the broadcast arrives")
        assert (heard["channel"], heard["data"]) == (f"{prefix}dream.created".encode(), first.event.encode())
        assert listener.get_message(timeout=0.1) is None
    key = f"{prefix}event:a"
    assert site.client.get(key) == first.event.encode()
    assert 86_000_000 < site.client.pttl(key) <= 86_400_000
    assert [fields[b"id"] for _, fields in site.client.xrange(Keys(prefix).journal)] == [b"a"]
    assert bus.get_event("a") == first.event


def test_many_publications_at_once(site: Site, bus: EventBus, settings: BridgeSettings, prefix: str) -> None:
    """A batch is written completely and in order, and another process can get each of its events."""
    ids = [f"n{number}" for number in range(200)]
    publish(bus, *ids)
    assert [fields[b"id"].decode() for _, fields in site.client.xrange(Keys(prefix).journal)] == ids
    with EventBus(settings) as other:
        assert [found.id for event_id in ids if (found := other.get_event(event_id))] == ids
        assert other.get_event("unknown") is None


def test_local_subscriptions(site: Site, bus: EventBus, settings: BridgeSettings, prefix: str) -> None:
    """Local subscriptions receive events of this process, other processes and external publishers once each."""
    heard: list[str] = []
    bus.subscribe("dream.*", lambda event: heard.append(event.id))
    bus.publish("dream.created", id="own")
    with EventBus(settings) as other:
        other.publish("dream.created", id="other")
        other.publish("cat.created", id="cat")
    site.shout(prefix, Event(type="dream.created", id="foreign"))
    eventually(lambda: len(heard) == 3, "three events are received")
    assert sorted(heard) == ["foreign", "other", "own"]


def test_events_become_messages_once(
    register_handlers,
    start_subscriber: StartSubscriber,
    site: Site,
    bus: EventBus,
    client: Redis,
    prefix: str,
    waiting: Waiting,
) -> None:
    """Internal and external events become one message for each handler, however often they are broadcast."""
    register_handlers("t.exact", "t.glob")
    start_subscriber("one")
    start_subscriber("two")
    publish(bus, "a")
    foreign = Event(type="dream.created", id="b")
    for _ in range(3):
        site.shout(prefix, foreign)
    expected = dict.fromkeys([message(one, task) for one in "ab" for task in ("t.exact", "t.glob")], 1)
    eventually(lambda: waiting.tasks().total() >= 4, "four messages are queued")
    eventually(lambda: client.xpending(Keys(prefix).journal, "tests")["pending"] == 0, "all are acknowledged")
    assert waiting.tasks() == expected


def test_what_is_no_event_becomes_a_dead_letter(
    register_handlers,
    start_subscriber: StartSubscriber,
    site: Site,
    client: Redis,
    settings: BridgeSettings,
    prefix: str,
    waiting: Waiting,
) -> None:
    """Invalid JSON, a type that is not the channel's and an id in use become dead letters; nothing stops."""
    register_handlers("t.exact")
    start_subscriber()
    site.client.publish(f"{prefix}dream.created", b"{")
    site.client.publish(f"{prefix}dream.deleted", Event(type="dream.created", id="spoofed").encode())
    site.shout(prefix, Event(type="dream.created", id="a"))
    eventually(lambda: waiting.tasks() == {message("a"): 1}, "the valid event is dispatched")
    site.client.publish(f"{prefix}dream.created", Event(type="dream.created", id="a", payload="other").encode())
    letters = Storage(client, settings).dead_letters
    eventually(lambda: len(letters.latest(10)) == 3, "there are three dead letters")
    assert sorted(letter.reason for letter in letters.latest(10)) == ["channel_mismatch", "id_conflict", "json"]


def test_events_of_an_absence_are_found(
    register_handlers,
    start_subscriber: StartSubscriber,
    site: Site,
    prefix: str,
    waiting: Waiting,
    settings: BridgeSettings,
) -> None:
    """Events that were broadcast without a subscriber are dispatched from their keys, on any server."""
    register_handlers("t.exact")
    start_subscriber("before").stop()
    ids = [f"n{number}" for number in range(60)]
    for event_id in ids:
        site.shout(prefix, Event(type="dream.created", id=event_id))
    if site.cluster:
        owners = {site.client.get_node_from_key(f"{prefix}event:{event_id}").name for event_id in ids}
        assert len(owners) == 3
    start_subscriber("after")
    eventually(lambda: waiting.tasks().total() >= 60, "all are dispatched")
    assert waiting.tasks() == dict.fromkeys(map(message, ids), 1)


def test_a_publisher_that_died_after_the_key(
    register_handlers, start_subscriber: StartSubscriber, site: Site, bus: EventBus, prefix: str, waiting: Waiting
) -> None:
    """A key without a journal entry, as a crash leaves it in a cluster, is dispatched once."""
    register_handlers("t.exact")
    event = Event(type="dream.created", id="half", source="tests")
    site.client.set(f"{prefix}event:half", event.encode(), ex=3600)
    start_subscriber()
    eventually(lambda: waiting.tasks() == {message("half"): 1}, "catch-up finds it")
    assert bus.publish(event).duplicate
    publish(bus, "next")
    eventually(lambda: waiting.tasks() == {message("half"): 1, message("next"): 1}, "nothing is dispatched again")


def test_each_group_has_every_event(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    settings: BridgeSettings,
    waiting: Waiting,
) -> None:
    """Two groups get a message each; deleting one leaves nothing of it behind and does not affect the other."""
    register_handlers("t.exact")
    start_subscriber("one")
    late = start_subscriber("two", group=OTHER_GROUP)
    publish(bus, "a", "b")
    eventually(lambda: waiting.tasks() == {message("a"): 2, message("b"): 2}, "there are two messages each")
    late.stop()
    assert [group.name for group in read_status(Storage(client, settings)).groups] == [OTHER_GROUP, "tests"]
    Groups(Storage(client, settings)).delete(OTHER_GROUP)
    assert [group.name for group in read_status(Storage(client, settings)).groups] == ["tests"]


def test_a_lost_journal_is_filled_again(
    register_handlers,
    start_subscriber: StartSubscriber,
    site: Site,
    bus: EventBus,
    client: Redis,
    prefix: str,
    waiting: Waiting,
) -> None:
    """A deleted journal is recreated with its group, and the events that still have keys are dispatched."""
    register_handlers("t.exact")
    publish(bus, "a", "b", "c")
    assert site.client.delete(Keys(prefix).journal)
    publish(bus, "d")
    subscriber = start_subscriber()
    eventually(lambda: set(waiting.tasks()) == set(map(message, "abcd")), "all are dispatched")
    assert site.client.delete(Keys(prefix).journal)
    eventually(lambda: subscriber.info().get("journal_lost"), "the loss is counted")
    publish(bus, "e")
    eventually(lambda: message("e") in waiting.tasks(), "a later event is dispatched")
    eventually(lambda: client.xlen(Keys(prefix).journal) == 5, "all events with keys are in the journal again")


def test_entries_of_a_dead_consumer_are_taken_over(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    settings: BridgeSettings,
    waiting: Waiting,
) -> None:
    """Entries that a consumer read and never acknowledged are dispatched by another consumer."""
    register_handlers("t.exact")
    dead = Storage(client, settings).consumer("dead")
    dead.create_group("earliest")
    publish(bus, "a", "b")
    assert len(dead.read(10, 10)) == 2
    start_subscriber(claim_idle_s=0.2, maintenance_interval_s=0.1)
    eventually(lambda: waiting.tasks() == {message("a"): 1, message("b"): 1}, "both are dispatched")


def test_a_message_that_the_broker_loses_is_sent_again(
    register_handlers, start_subscriber: StartSubscriber, bus: EventBus, waiting: Waiting
) -> None:
    """A message that the broker loses is sent again from the ledger."""
    register_handlers("t.exact")
    subscriber = start_subscriber(redispatch_after_s=1, maintenance_interval_s=0.1)
    publish(bus, "a")
    eventually(lambda: waiting.tasks() == {message("a"): 1}, "the message is queued")
    waiting.clear()
    eventually(lambda: waiting.tasks()[message("a")], "the message is queued again")
    eventually(lambda: subscriber.info().get("redispatched"), "it is counted, once the ledger is updated")


def test_replays_of_journal_and_dead_letters(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    settings: BridgeSettings,
    waiting: Waiting,
) -> None:
    """Replays of the journal and of dead letters run the selected events again, with new task ids."""
    register_handlers("t.exact")
    start_subscriber()
    bench = Replays(client, settings)
    publish(bus, "a", "b")
    bench.park(7)
    assert last(bench.journal("again", ids=frozenset("a")).run(FAST)).replayed == 1
    assert last(bench.dead("retry").run(FAST)).replayed == 1
    expected = {message("a"): 2, message("b"): 1, message("n7"): 1}
    eventually(lambda: waiting.tasks() == expected, "the replayed events are dispatched as well")
    assert bench.letters.latest(10) == []


def test_status_and_presence(
    register_handlers,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    settings: BridgeSettings,
    waiting: Waiting,
) -> None:
    """Live subscribers, the backlog and tasks in flight are reported correctly."""
    register_handlers("t.exact")
    start_subscriber("one")
    publish(bus, "a", "b")
    eventually(lambda: waiting.tasks().total() == 2, "both are dispatched")
    eventually(
        lambda: [one.ready for one in Storage(client, settings).presence.all()] == [True],
        "the subscriber reports that it is ready",
    )
    eventually(lambda: read_status(Storage(client, settings)).groups[0].backlog == 0, "all are acknowledged")
    status = read_status(Storage(client, settings))
    (group,) = status.groups
    assert (status.entries, group.name, group.in_flight, group.alive) == (2, "tests", 2, 1)

"""An id that was published twice: the event that was handled, not the one that its publisher wrote to the key since."""

from __future__ import annotations

from functools import partial

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.errors import InvalidEvent
from bridge.flower.data import EventData
from bridge.handlers.handler import task_id_for
from bridge.operations.history import History
from bridge.operations.trace import Tracer
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import StartSubscriber
from tests.support.cli import invoker, on_bus
from tests.support.outside import as_typescript_broadcasts
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually

HANDLED = Event(id="counter-1", type="dream.created", payload={"n": 1, "secret": "s"}, source="first", timestamp=1)
REFUSED = Event(id="counter-1", type="dream.told", payload={"n": 2}, source="second", timestamp=2)


@pytest.fixture
def conflict(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings, queues: Queues
) -> None:
    """The TypeScript bus publishes both events; the second one replaces the first in the key, and is a dead letter."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    keys = Keys(settings.channel_prefix)
    for event in (HANDLED, REFUSED):
        client.set(keys.event(event.id), event.encode(), ex=3600)
        client.publish(keys.channel(event.type), as_typescript_broadcasts(event).encode())
        eventually(lambda: queues.length() == 1, "the first event is dispatched")
    letters = eventually(lambda: Storage(client, settings).dead_letters.latest(5), "the second one is a dead letter")
    assert [letter.reason for letter in letters] == ["id_conflict"]
    subscriber.stop()


def test_a_key_does_not_pass_for_the_event_that_was_handled(
    conflict: None, app: Celery, client: Redis, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every view of an id shows the event that was handled; once that has expired, it names the conflict."""
    on_bus(settings, monkeypatch)
    app.conf.update(bridge_channel_prefix=settings.channel_prefix, bridge_group="tests")
    keys, storage = Keys(settings.channel_prefix), Storage(client, settings)
    get, data = partial(invoker(app, "get"), "counter-1"), EventData(app)
    with EventBus(settings) as bus:
        assert bus.get_event("counter-1") == History(storage).event("counter-1") == HANDLED
        assert '"payload": {"n": 1,' in get().output
        assert [node.event_type for node in Tracer(app, storage).trace("counter-1").roots] == ["dream.created"]
        assert data.page("counter-1").event == HANDLED
        client.set(keys.event("counter-1"), b"{", ex=3600)
        assert bus.get_event("counter-1") == HANDLED, "neither does a key that holds no event"

        client.set(keys.event("counter-1"), REFUSED.encode(), ex=3600)
        client.xtrim(keys.journal, maxlen=0)
        for read in (bus.get_event, History(storage).event):
            with pytest.raises(InvalidEvent, match="the key of event counter-1 holds another event"):
                read("counter-1")
        assert "holds another event" in get(expect=1).output
        assert Tracer(app, storage).trace("counter-1") is data.page("counter-1") is None

        client.set(keys.event("counter-1"), HANDLED.encode(), ex=3600)
        assert bus.get_event("counter-1") == HANDLED, "a key that holds the event outlives the journal"


def test_what_runs_again_is_what_was_handled(conflict: None, client: Redis, settings: BridgeSettings) -> None:
    """Replays and retries take the event that was handled, also where a dead letter lacks its redacted parts."""
    replays = Replays(client, settings.model_copy(update={"redact_paths": ["payload.secret"]}))
    assert last(replays.journal().run(FAST)).replayed == 1
    task_id = task_id_for("tests", "counter-1", "t.exact")
    letter = DeadLetter.of_event("failure", "boom", HANDLED, HANDLED.encode(), "t.exact", task_id)
    Storage(client, replays.settings).dead_letters.add(letter)
    assert last(replays.dead("again", handler="t.exact").run(FAST)).replayed == 1
    events = [Event.decode(fields[b"event"], max_bytes=10_000) for fields in replays.replayed()]
    assert [(event.type, event.payload) for event in events] == [(HANDLED.type, HANDLED.payload)] * 2


def test_the_key_of_another_event_names_no_source(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings
) -> None:
    """A broadcast does not get the source of another event that has overwritten its key."""
    register_handlers("t.all")
    start_subscriber()
    keys = Keys(settings.channel_prefix)
    client.set(keys.event(REFUSED.id), REFUSED.encode(), ex=3600)
    client.publish(keys.channel(HANDLED.type), as_typescript_broadcasts(HANDLED).encode())
    ((_, fields),) = eventually(lambda: client.xrange(keys.journal), "the event is appended")
    assert Event.decode(fields[b"event"], max_bytes=10_000) == HANDLED.model_copy(update={"source": None})

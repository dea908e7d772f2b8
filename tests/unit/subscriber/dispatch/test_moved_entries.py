"""A repair of the journal moves entries some of whose tasks were sent."""

from __future__ import annotations

from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.storage.server_time import server_ms
from tests.support.apps import make_app
from tests.support.members import Member
from tests.support.queues import Queues

EVENTS = 10


def test_entries_that_were_handed_over(client: Redis, settings: BridgeSettings, bus: EventBus, prefix: str) -> None:
    """Under their new ids, no handler gets them twice, though their notes are gone and nobody else has handlers."""
    keys, queues = Keys(prefix), Queues(client, prefix)
    with make_app(settings.url, prefix) as app:
        app.finalize()
        member = Member(settings.model_copy(update={"block_ms": 1}), app, "one", "t.all")
        member.consumer.create_group("earliest")
        bus.publish_many([Event(type="billing.paid", id=f"n{number}") for number in range(EVENTS)])
        member.storage.presence.report(Presence("other", handlers={"t.plain": ["billing.*"]}))
        member.report()
        member.steps()
        assert client.hlen(keys.handed_over("tests")) == queues.length() == EVENTS
        client.delete(keys.subscribers("tests"))
        ahead_ms = server_ms(client.time()) + 86_400_000
        client.xadd(keys.journal, {"event": Event(type="dream.made", id="ahead").encode()}, id=f"{ahead_ms}-0")
        assert member.storage.journal_repair.set_aside() > 0
        member.steps()  # it knows the fencing token when it reads them
        while member.storage.journal_repair.move_back()[1]:
            pass
        member.steps()
        assert client.xpending(keys.journal, "tests")["pending"] == 0
        assert queues.tasks().total() == len(queues.tasks()) == EVENTS + 1
        member.consumer.forget_removed()
        assert client.hlen(keys.handed_over("tests")) == 0
        member.close()

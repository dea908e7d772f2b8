"""A handler gets only events that match its patterns, whichever way they come in: none stands in for a signed one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.storage import Storage
from tests.handlers import HANDLERS
from tests.support.apps import StartSubscriber
from tests.support.outside import SIGNED, Outside
from tests.support.queues import Queues
from tests.support.replays import FAST, Replays, last
from tests.support.waiting import eventually

#: Handlers of signed types, of types that need no signature, and of both.
NAMES = ["t.plain", "t.exact", "t.glob", "t.all"]
#: Types that need no signature.
FREE = ["dream.created", "other.thing", "billing"]
#: One forged event for each handler and type: its id is also that of a real event.
FORGED = {f"{name}-{event_type}": (name, event_type) for name, event_type in product(NAMES, FREE)}
#: Tasks are overdue almost immediately, and checked several times a second.
HASTY = {"redispatch_after_s": 0.3, "maintenance_interval_s": 0.05}


class Attack:
    """Forged events of types that need no signature, and a subscriber that has handlers of types that need one."""

    def __init__(self, outside: Outside, queues: Queues, settings: BridgeSettings, start: Callable[[], Any]) -> None:
        self.outside = outside
        self.queues = queues
        self.settings = settings
        self.start = start
        self.replays = Replays(outside.client, settings)

    def forged(self, event_id: str, **fields: Any) -> bytes:
        return self.outside.unsigned(event_id, FORGED[event_id][1], payload="forged", **fields)

    def write(self, event_id: str, address: dict[str, str], mark: dict[str, str] | None) -> None:
        metadata = None if mark is None else {"replay": mark}
        self.outside.write(self.forged(event_id, metadata=metadata), id=event_id, type="billing.paid", **address)

    def dispatch_real_events(self) -> None:
        """Dispatch signed events under the ids of the forged ones."""
        with EventBus(self.settings) as bus:
            bus.publish_many([Event(id=event_id, type="billing.paid", payload="real") for event_id in FORGED])
        eventually(lambda: self.queues.length() == 2 * len(FORGED), "the real events are queued")

    def overwrite_keys(self) -> None:
        for event_id in FORGED:
            self.outside.keep(event_id, self.forged(event_id))

    def tasks(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the task and the event of each queued message."""
        messages = self.queues.messages()
        return [(one["headers"]["task"], json.loads(base64.b64decode(one["body"]))[0][0]) for one in messages]

    def seen(self) -> set[str]:
        """Return the ids of the forged events that have become a task or a dead letter."""
        ids = {event["id"] for _, event in self.tasks() if event["payload"] == "forged"}
        for letter in self.outside.letters():
            ids |= {letter.event_id} if letter.event_id else {Event.decode(letter.raw, max_bytes=10_000).id}
        return ids


def channel(attack: Attack) -> None:
    attack.start()
    for event_id, (_, event_type) in FORGED.items():
        attack.outside.say(attack.forged(event_id), event_type)


def channel_of_the_signed_type(attack: Attack) -> None:
    attack.start()
    for event_id in FORGED:
        attack.outside.say(attack.forged(event_id), "billing.paid")


def key(attack: Attack) -> None:
    attack.overwrite_keys()
    attack.start()


def refill(attack: Attack) -> None:
    subscriber = attack.start()
    attack.dispatch_real_events()
    attack.overwrite_keys()
    attack.outside.client.delete(attack.outside.keys.journal)
    eventually(lambda: subscriber.info().get("journal_lost"), "the lost journal is noticed")


def recovery(attack: Attack) -> None:
    attack.start()
    attack.dispatch_real_events()
    attack.overwrite_keys()
    attack.outside.client.xtrim(attack.outside.keys.journal, maxlen=0)
    assert attack.outside.client.delete(f"broker:{attack.outside.keys.prefix}celery"), "the messages are lost"


def entry(attack: Attack) -> None:
    attack.start()
    for event_id in FORGED:
        attack.write(event_id, {}, None)


def entry_with_a_group(attack: Attack) -> None:
    attack.start()
    for event_id in FORGED:
        attack.write(event_id, {"group": "tests"}, None)


def entry_with_a_handler(attack: Attack) -> None:
    attack.start()
    for event_id, (name, _) in FORGED.items():
        attack.write(event_id, {"handler": name}, None)


def entry_like_an_old_replay(attack: Attack) -> None:
    attack.start()
    for event_id, (name, _) in FORGED.items():
        attack.write(event_id, {"group": "tests", "handler": name}, {"name": "r"})


def entry_like_a_replay(attack: Attack) -> None:
    attack.start()
    for event_id, (name, _) in FORGED.items():
        address = {"group": "tests", "handler": name}
        attack.write(event_id, address, address | {"name": "r"})


def dead_letter(attack: Attack) -> None:
    """Retry a dead letter of each handler with an event of each type, as if somebody had forged the dead letters."""
    attack.start()
    letters = Storage(attack.outside.client, attack.settings).dead_letters
    for event_id, (name, _) in FORGED.items():
        event = Event.decode(attack.forged(event_id), max_bytes=10_000)
        task_id = task_id_for("tests", event_id, name)
        letters.add(DeadLetter.of_event("failure", "boom", event, event.encode(), name, task_id))
    last(attack.replays.dead().run(FAST))


def replay(attack: Attack) -> None:
    """Replay entries, which say that they hold events of the signed type, for each handler of that type."""
    for event_id in FORGED:
        attack.write(event_id, {}, None)
    for name in ("t.plain", "t.all"):
        last(attack.replays.journal(name, name, HANDLERS[name].matches).run(FAST))
    attack.start()


WAYS: list[Callable[[Attack], None]] = [
    *(channel, channel_of_the_signed_type, key, refill, recovery, dead_letter, replay),
    *(entry, entry_with_a_group, entry_with_a_handler, entry_like_an_old_replay, entry_like_a_replay),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_no_handler_of_a_signed_type_runs_with_what_no_key_has_signed(
    register_handlers,
    start_subscriber: StartSubscriber,
    outside: Outside,
    queues: Queues,
    settings: BridgeSettings,
    way: Callable[[Attack], None],
) -> None:
    """Each forged event becomes a task of handlers that match its type, or a dead letter."""
    register_handlers(*NAMES)
    keys = {"redis_url": settings.url, "channel_prefix": settings.channel_prefix, "group": settings.group}
    attack = Attack(outside, queues, BridgeSettings.load(**keys, **SIGNED), lambda: start_subscriber(**SIGNED, **HASTY))
    way(attack)
    eventually(lambda: attack.seen() >= FORGED.keys(), "each forged event is a task or a dead letter")
    for name, event in attack.tasks():
        assert HANDLERS[name].matches(event["type"]), (name, event)
        assert event["payload"] == ("real" if event["type"] == "billing.paid" else "forged"), (name, event)

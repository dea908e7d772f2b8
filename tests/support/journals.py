"""What tests do with a journal without a subscriber."""

from __future__ import annotations

from bridge.events import EncodedEvent, Event
from bridge.storage.journal import new_attempt
from bridge.storage.journal_consumer import JournalConsumer
from bridge.storage.storage import Storage


def publish(storage: Storage, *ids: str) -> None:
    """Publish events with these ids, which must be new."""
    events = [Event(id=one, type="a.b") for one in ids]
    encoded = [EncodedEvent.of(event, event.encode()) for event in events]
    assert storage.journal.publish(encoded, [new_attempt() for _ in ids], broadcast=False) == ["appended"] * len(ids)


def consumer(storage: Storage, group: str) -> JournalConsumer:
    """Return the consumer ``one`` of a group, which is created if it does not exist."""
    made = storage.of_group(group).consumer("one")
    made.create_group("earliest")
    return made

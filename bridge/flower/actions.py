"""The actions behind the buttons: retry a dead letter, replay an event, as ``bus dead`` and ``bus replay`` do."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bridge.errors import BridgeError
from bridge.flower.data import EventData
from bridge.flower.tree import find
from bridge.handlers import registry
from bridge.operations import DeadLetterSource, ImpactReader, JournalSource, Replay, ReplayItem
from bridge.storage import EntryFilter, stream_position
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)

#: Events per second; each action replays one.
_RATE = 100.0
#: How long what follows is counted while a user waits for the page.
_COUNTING_S = 2.0


@dataclass(frozen=True)
class Preview:
    """What an action would do.

    Arguments:
        tasks: The handlers that would run, and whether each had succeeded before.
        sentences: What would run and what would follow, see :class:`Impact`.
    """

    event_id: str
    event_type: str
    tasks: dict[str, bool]
    sentences: list[str]


@dataclass(frozen=True)
class _OneEvent:
    """A replay of one event or dead letter.

    Arguments:
        gone: Why there is nothing to replay, if there is not.
    """

    replay: Replay
    name: str
    gone: str

    def item(self) -> ReplayItem:
        """Return what would be replayed.

        Raises:
            BridgeError: It cannot be replayed; the text says why.
        """
        found = next(self.replay.remaining(), None)
        if found is None:
            raise BridgeError(self.gone)
        if found.event is None:
            raise BridgeError(f"it cannot be replayed: {found.problem}")
        return found

    def preview(self, data: EventData) -> Preview:
        """Return what would happen, without changing anything."""
        reader = ImpactReader(data.app, data.storage, _COUNTING_S)
        ((item, tasks),) = reader.read([self.item()])
        return Preview(item.event_id, item.event_type, tasks, reader.impact.sentences())

    def run(self, who: str) -> ReplayItem:
        """Replay it; return what was replayed.

        Raises:
            BridgeError: It cannot be replayed, or no longer.
        """
        progress = self.replay.progress()
        if progress is not None and progress.finished:
            raise BridgeError(f"it was replayed already, as {self.name}: the button was pressed twice")
        found, replayed = self.item(), 0
        for progress in self.replay.run(_RATE):
            replayed = progress.replayed
        if not replayed:
            raise BridgeError(self.gone)
        extra = log_fields(
            Action.REPLAY_REQUESTED, event_id=found.event_id, event_type=found.event_type, handler=found.handler
        )
        text = "Replay %s requested in Flower by %s: event %s to %s"
        log.info(text, self.name, who, found.event_id, found.handler or "all handlers", extra=extra)
        return found


def preview_retry(data: EventData, dead_letter_id: str) -> Preview:
    """Return what the retry of a dead letter would do.

    Raises:
        BridgeError: It cannot be retried; the text says why.
        BusUnavailable: Redis does not answer.
    """
    return _retry(data, dead_letter_id, new_name()).preview(data)


def retry(data: EventData, dead_letter_id: str, who: str, name: str) -> str:
    """Run the handler of a dead letter again; return a message for the user.

    Arguments:
        who: The user, for the log.
        name: Name of the replay; the same one twice is the same replay.

    Raises:
        BridgeError: It cannot be replayed; the text says why.
        BusUnavailable: Redis does not answer.
    """
    one = _retry(data, dead_letter_id, name)
    done = one.run(who)
    what = done.handler or "all handlers"
    return f"Retried: event {done.event_id} was sent to {what} again, as replay {one.name}."


def _retry(data: EventData, dead_letter_id: str, name: str) -> _OneEvent:
    at_ms, _ = stream_position(dead_letter_id)
    selection = EntryFilter(since_ms=at_ms, until_ms=at_ms + 1, ids=frozenset({dead_letter_id}))
    source = DeadLetterSource(data.storage, selection, registry)
    gone = "this dead letter no longer exists: it was retried, purged or evicted"
    filters = {"from": "dead letters", "id": [dead_letter_id]}
    return _OneEvent(Replay(data.storage, source, name, filters), name, gone)


def preview_replay(data: EventData, event_id: str, handler_name: str) -> Preview:
    """Return what a replay of an event would do.

    Arguments:
        handler_name: Name of the only handler to run; empty: all that match.

    Raises:
        BridgeError: It cannot be replayed; the text says why.
        BusUnavailable: Redis does not answer.
    """
    return _replay(data, event_id, handler_name, new_name()).preview(data)


def replay(data: EventData, event_id: str, handler_name: str, who: str, name: str) -> str:
    """Run the handlers of an event in the journal again; return a message for the user.

    Arguments:
        handler_name: Name of the only handler to run; empty: all that match.
        who: The user, for the log.
        name: Name of the replay; the same one twice is the same replay.

    Raises:
        BridgeError: It cannot be replayed; the text says why.
        BusUnavailable: Redis does not answer.
    """
    one = _replay(data, event_id, handler_name, name)
    done = one.run(who)
    return f"Replayed: event {done.event_id} was sent to {handler_name or 'all handlers'} again, as replay {one.name}."


def _replay(data: EventData, event_id: str, handler_name: str, name: str) -> _OneEvent:
    trace = data.trace(event_id)
    node = find(trace, event_id) if trace else None
    gone = f"event {event_id} is no longer in the journal, so it cannot be replayed"
    if node is None or not node.at_ms:
        raise BridgeError(gone)
    # The time when it was appended limits the search to this entry.
    selection = EntryFilter(since_ms=node.at_ms, until_ms=node.at_ms + 1, ids=frozenset({event_id}))
    filters: dict[str, Any] = {"from": "journal", "id": [event_id]}
    handler = registry.get(handler_name)
    if not handler_name:
        source = JournalSource(data.storage, selection)
    elif handler is not None and handler.matches(node.event_type):
        source = JournalSource(data.storage, selection, handler_name, handler.matches)
        filters["handler"] = handler_name
    else:
        raise BridgeError(f"this application has no handler {handler_name[:120]!r} for {node.event_type}")
    return _OneEvent(Replay(data.storage, source, name, filters), name, gone)


def new_name() -> str:
    """Return a name for a replay that nobody has used."""
    return f"flower-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"

"""What the buttons of the Events pages do: retry a dead letter, replay an event. As ``bus dead`` and ``bus replay``."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bridge.errors import BridgeError
from bridge.flower.data import EventData
from bridge.flower.tree import find
from bridge.handlers import registry
from bridge.operations import DeadLetterSource, JournalSource, Replay, ReplayItem, Source
from bridge.storage import EntryFilter, stream_position
from bridge.telemetry import Action, log_fields

log = logging.getLogger(__name__)

#: Events per second; it is about one.
_RATE = 100.0


def retry(data: EventData, dead_letter_id: str, who: str) -> str:
    """Give a dead letter to the handler that failed once more; return what was done, for a person.

    Arguments:
        who: Who asked for it, for the log.

    Raises:
        BridgeError: It cannot be; the text says why.
        BusUnavailable: Redis does not answer.
    """
    at_ms, _ = stream_position(dead_letter_id)
    selection = EntryFilter(since_ms=at_ms, until_ms=at_ms + 1, ids=frozenset({dead_letter_id}))
    source = DeadLetterSource(data.storage, selection, registry.names)
    gone = "this dead letter is gone: it was retried or dropped before"
    done, name = _replay(data, source, {"from": "dead letters", "id": [dead_letter_id]}, gone, who)
    what = done.handler or "all handlers"
    return f"Retried: {what} gets event {done.event_id} again, as replay {name}."


def replay(data: EventData, event_id: str, handler_name: str, who: str) -> str:
    """Give an event of the journal to its handlers once more; return what was done, for a person.

    Arguments:
        handler_name: The one handler that gets it; empty: all that match.
        who: Who asked for it, for the log.

    Raises:
        BridgeError: It cannot be; the text says why.
        BusUnavailable: Redis does not answer.
    """
    trace = data.trace(event_id)
    node = find(trace, event_id) if trace else None
    gone = f"event {event_id} is no longer in the journal, so it cannot be replayed"
    if node is None or not node.at_ms:
        raise BridgeError(gone)
    # With the moment at which the journal took it nothing else is read.
    selection = EntryFilter(since_ms=node.at_ms, until_ms=node.at_ms + 1, ids=frozenset({event_id}))
    filters: dict[str, Any] = {"from": "journal", "id": [event_id]}
    handler = registry.get(handler_name)
    if not handler_name:
        source = JournalSource(data.storage, selection)
    elif handler is not None and handler.matches(node.event_type):
        source = JournalSource(data.storage, selection, handler_name, handler.matches)
        filters["handler"] = handler_name
    else:
        raise BridgeError(f"{handler_name[:120]!r} is no handler of {node.event_type} here")
    done, name = _replay(data, source, filters, gone, who)
    return f"Replayed: {handler_name or 'all handlers'} of event {done.event_id}, as replay {name}."


def _replay(data: EventData, source: Source, filters: Mapping[str, Any], gone: str, who: str) -> tuple[ReplayItem, str]:
    """Replay the one event of *source*; return it, and the name of the replay."""
    name = f"flower-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    replay = Replay(data.storage, source, name, filters)
    found = next(replay.remaining(), None)
    if found is None:
        raise BridgeError(gone)
    if found.event is None:
        raise BridgeError(f"it cannot be replayed: {found.problem}")
    replayed = 0
    for progress in replay.run(_RATE):
        replayed = progress.replayed
    if not replayed:
        raise BridgeError(gone)
    extra = log_fields(
        Action.REPLAY_REQUESTED, event_id=found.event_id, event_type=found.event_type, handler=found.handler
    )
    whom = found.handler or "all handlers"
    log.info("replay %s was asked for in Flower by %s: event %s to %s", name, who, found.event_id, whom, extra=extra)
    return found, name

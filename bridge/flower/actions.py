"""The actions behind the buttons: retry a dead letter, replay an event, as ``bus dead`` and ``bus replay`` do."""

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

#: Events per second; each action replays one.
_RATE = 100.0


def retry(data: EventData, dead_letter_id: str, who: str) -> str:
    """Run the handler of a dead letter again; return a message for the user.

    Arguments:
        who: The user, for the log.

    Raises:
        BridgeError: It cannot be replayed; the text says why.
        BusUnavailable: Redis does not answer.
    """
    at_ms, _ = stream_position(dead_letter_id)
    selection = EntryFilter(since_ms=at_ms, until_ms=at_ms + 1, ids=frozenset({dead_letter_id}))
    source = DeadLetterSource(data.storage, selection, registry)
    gone = "this dead letter no longer exists: it was retried, purged or evicted"
    done, name = _replay(data, source, {"from": "dead letters", "id": [dead_letter_id]}, gone, who)
    what = done.handler or "all handlers"
    return f"Retried: event {done.event_id} was sent to {what} again, as replay {name}."


def replay(data: EventData, event_id: str, handler_name: str, who: str) -> str:
    """Run the handlers of an event in the journal again; return a message for the user.

    Arguments:
        handler_name: Name of the only handler to run; empty: all that match.
        who: The user, for the log.

    Raises:
        BridgeError: It cannot be replayed; the text says why.
        BusUnavailable: Redis does not answer.
    """
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
    done, name = _replay(data, source, filters, gone, who)
    return f"Replayed: event {done.event_id} was sent to {handler_name or 'all handlers'} again, as replay {name}."


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
    log.info("Replay %s requested in Flower by %s: event %s to %s", name, who, found.event_id, whom, extra=extra)
    return found, name

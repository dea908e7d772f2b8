"""Messages for the tests, and their parts that tests compare."""

from __future__ import annotations

import json
from typing import Any

from bridge import Event
from bridge.broker.messages import Message
from bridge.broker.outbox import Outbox
from bridge.events.encoded import EncodedEvent
from bridge.handlers.delivery import SENT_HEADER
from tests.handlers import HANDLERS

#: Properties and headers that differ between any two messages of Celery, and the header that only the bridge writes.
VOLATILE = ("reply_to", "eta", "expires", "x-death", SENT_HEADER)


def stored(event_id: str = "e1", text: str = "x") -> EncodedEvent:
    return EncodedEvent.read(Event(type="billing.paid", id=event_id, payload={"text": text}, source="shop").encode())


def prepared(outbox: Outbox, name: str = "t.plain", count: int = 1, text: str = "x") -> list[Message]:
    return [outbox.prepare(HANDLERS[name], stored(f"e{number}", text), b"1-1") for number in range(count)]


def plain(message: Any) -> dict[str, Any]:
    """Return the message without the parts that always differ."""
    headers = message.properties["application_headers"]
    properties = {name: value for name, value in message.properties.items() if name != "application_headers"}
    parts = [{name: value for name, value in part.items() if name not in VOLATILE} for part in (properties, headers)]
    return {"parts": parts, "body": json.loads(message.body), "key": message.delivery_info["routing_key"]}

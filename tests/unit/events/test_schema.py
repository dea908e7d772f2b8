"""The JSON Schema of events in the documentation, compared with what the bridge writes and reads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bridge import Event, InvalidEvent
from tests.support import ROOT

SCHEMA = json.loads((ROOT / "docs" / "reference" / "event.schema.json").read_text())
VALID: dict[str, Any] = {"id": "a", "type": "order.placed", "payload": None, "timestamp": 1}


def accepts(fields: dict[str, Any]) -> bool:
    return bool(Draft202012Validator(SCHEMA).is_valid(fields))


def test_it_is_a_schema() -> None:
    """The file is a valid schema of draft 2020-12."""
    Draft202012Validator.check_schema(SCHEMA)


def test_it_accepts_what_the_bridge_writes() -> None:
    """Events with all fields, and events that were caused by others, are valid."""
    first = Event(type="order.placed", payload={"order_id": "o-1"}, source="shop", metadata={"mine": [1]})
    for event in (first, first.child("order.paid"), Event(type="a:b/c-d_e", payload=[None, 1.5, "夢"])):
        assert accepts(json.loads(event.encode()))


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": "a b"},
        {"id": "a/b"},
        {"id": ""},
        {"id": "x" * 201},
        {"type": "order placed"},
        {"type": "order.*"},
        {"type": ".order"},
        {"type": "undefined"},
        {"type": "x" * 201},
        {"metadata": []},
        {"source": {}},
        {"correlationId": 7},
    ],
    ids=str,
)
def test_it_refuses_what_the_bridge_refuses(change: dict[str, Any]) -> None:
    """Ids, types and fields that would become a dead letter are not valid."""
    assert accepts(VALID)
    assert not accepts(VALID | change)
    with pytest.raises(InvalidEvent):
        Event.decode(json.dumps(VALID | change).encode(), max_bytes=1000)

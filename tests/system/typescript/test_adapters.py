"""The adapters of docs/guides/typescript.md: each makes an event of an envelope that the bus refuses."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bridge import Event, InvalidEvent
from tests.support import ROOT
from tests.support.requirements import program
from tests.support.typescript_shapes import SHAPES
from tests.support.walkthrough import texts_of

ENVELOPES: dict[str, dict[str, Any]] = {
    "fromNerve": {
        "id": "n-1",
        "channelId": "SHIELD_EVENT",
        "kind": "THREAT_DETECTED",
        "priority": 5,
        "context": {"timestamp": "2025-11-30T10:53:20.000Z", "traceId": "t-1"},
        "payload": {"a": 1},
    },
    "fromNervousSystem": {"id": "m-1", "ts": 7, "role": "sensor", "topic": "alert", "corr": "c", "payload": {"a": 1}},
    "fromMessageBus": {"id": "b-1", "topic": "bridge.message", "payload": {"a": 1}, "timestamp": 7},
    "withId": {"type": "Market.PriceChanged", "payload": {"a": 1}, "source": "market"},
}
EVENTS: dict[str, dict[str, Any]] = {
    "fromNerve": {"type": "nerve.THREAT_DETECTED", "timestamp": 1_764_500_000_000, "correlationId": "t-1"},
    "fromNervousSystem": {"type": "alert", "timestamp": 7, "source": "sensor", "correlationId": "c"},
    "fromMessageBus": {"type": "bridge.message", "timestamp": 7, "source": "message-bus"},
    "withId": {"type": "Market.PriceChanged", "source": "market"},
}


def test_the_adapters_of_the_page(tmp_path: Path) -> None:
    """What each adapter returns is an event with the right fields; without it, the envelope is refused."""
    node = program("node")
    code, _ = texts_of((ROOT / "docs" / "guides" / "typescript.md").read_text(), "ts")
    (tmp_path / "adapters.mjs").write_text(code)  # it contains no types, which Node would have to remove
    calls = [f"adapters.{name}({json.dumps(envelope)})" for name, envelope in ENVELOPES.items()]
    script = f'import * as adapters from "./adapters.mjs"; console.log(JSON.stringify([{", ".join(calls)}]))'
    (tmp_path / "run.mjs").write_text(script)
    done = subprocess.run([node, "run.mjs"], cwd=tmp_path, capture_output=True, timeout=30, check=True)
    for name, fields in zip(ENVELOPES, json.loads(done.stdout), strict=True):
        with pytest.raises(InvalidEvent):
            Event.decode(json.dumps(ENVELOPES[name]).encode(), max_bytes=1000, channel_type="undefined")
        event = Event.decode(json.dumps(fields).encode(), max_bytes=1000, channel_type=EVENTS[name]["type"]).to_dict()
        assert event["payload"] == {"a": 1}
        assert event | EVENTS[name] == event


def test_the_page_counts_the_shapes() -> None:
    """The page states how many shapes are tested."""
    (count,) = re.findall(r"A test publishes (\d+) shapes", (ROOT / "docs" / "guides" / "typescript.md").read_text())
    assert int(count) == len(SHAPES)

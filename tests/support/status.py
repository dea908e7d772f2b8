"""What the tests of ``bus status`` share."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.storage.storage import Storage
from tests.support.apps import Invoke


def told(invoke: Invoke) -> dict[str, Any]:
    """Return the output for programs, which is one line."""
    (line,) = invoke("status", "--json").stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows below the header that begins with *first*, up to an empty line, split at spaces."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    rows = lines[start + 1 :]
    return [row.split() for row in rows[: rows.index("") if "" in rows else None]]


def fill(client: Redis, settings: BridgeSettings, bus: EventBus, keys: Keys) -> None:
    """Make a group with a backlog, tasks, dead letters and subscribers, and another group that is idle."""
    bus.publish_many([Event(type="dream.created", id=f"e{number}") for number in range(10)])
    client.xgroup_create(keys.journal, "tests", id="0")
    client.xgroup_create(keys.journal, "idle", id="$")
    client.xreadgroup("tests", "silent", {keys.journal: ">"}, count=3)
    pair = InFlightTask("t.exact", "e", "1-1", "celery")
    Storage(client, settings).ledger.acknowledge_sent([], [pair.entry(f"t{number}") for number in range(5)])
    late = settings.model_copy(update={"redispatch_after_s": -1})
    Storage(client, late).ledger.acknowledge_sent([], [pair.entry("late")])
    Storage(client, settings).dead_letters.add(DeadLetter.of_message("json", "", "channel", b"x"))
    now_s = int(client.time()[0])
    problems, gap_ms = ["cannot", "will not"], (now_s - 7300) * 1000
    for after_s, one in (
        (60, Presence("well", "here", dispatched_per_s=2.5)),  # a minute ahead, so it is alive during the test
        (60, Presence("tired", "there", problems, gap_ms=gap_ms)),
        (60, Presence("waiting", waits="queue celery is full")),
        (-8, Presence("lost", dispatched_per_s=99.0)),
    ):
        said = f"{(now_s + after_s) * 1000} {json.dumps(asdict(one))}"
        client.hset(keys.subscribers("tests"), one.name, said)

"""``bus trace``: the tasks and events caused by an event, as a tree."""

from __future__ import annotations

import json
import re

import pytest
from celery import Celery
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.storage.in_flight import InFlightTask
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import Invoke
from tests.support.cli import invoker, on_bus
from tests.support.spans import SPAN_ID, TRACE_ID, TRACEPARENT
from tests.support.trees import shape

HERE = "tests.chains"


@pytest.fixture
def trace(user_app: Celery, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run ``bus trace ...`` in this process with the handlers of tests/chains.py."""
    on_bus(settings, monkeypatch)
    return invoker(user_app, "trace")


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


# The state in Redis without a worker


@pytest.mark.parametrize("unknown", ["unknown", "x" * 10_000, "a b", "\x1b[2J", ""])
def test_an_unknown_id(trace: Invoke, unknown: str) -> None:
    """For an unknown id the status is 1 with one line of explanation, and no output for programs."""
    for arguments in ([unknown], [unknown, "--json"]):
        result = trace(*arguments, expect=1)
        assert result.stdout == ""
        assert "no event or chain with id" in result.stderr
        assert result.stderr.endswith(" (kept for 24 h)\n")
        assert result.stderr.count("\n") == 1
        assert "\x1b" not in result.stderr


def test_ids_of_traces(trace: Invoke, bus: EventBus) -> None:
    """An event shows the id of its trace of OpenTelemetry, unless that is the trace of the event that caused it."""
    first = bus.publish("a.b", id="first", metadata={"traceparent": TRACEPARENT}).event
    other = TRACE_ID[::-1]
    for name, parent in (("same", TRACEPARENT), ("other", f"00-{other}-{SPAN_ID}-00"), ("bad", "00-\x1b[2J")):
        bus.publish(first.child("a.c", id=name, metadata={"traceparent": parent}))
    found = [re.findall(r"trace (\w+)", line) for line in trace("first").stdout.splitlines()]
    assert found == [[TRACE_ID], [], [other], []]
    (tree,) = json.loads(trace("first", "--json").stdout)["roots"]
    assert [tree["trace_id"], *(event["trace_id"] for event in tree["events"])] == [TRACE_ID, TRACE_ID, other, ""]


def test_states_without_a_worker(
    trace: Invoke, bus: EventBus, client: Redis, settings: BridgeSettings, keys: Keys
) -> None:
    """Without a worker, tasks are shown as waiting, skipped, sent, started or to be retried."""
    client.xgroup_create(keys.journal, "tests", id="0", mkstream=True)
    bus.publish("sleepy.created", 1, id="first")
    assert shape(trace("first").stdout) == "sleepy.created\n   sleepy WAITING\n"
    (entry,) = client.xreadgroup("tests", "one", {keys.journal: ">"})[0][1]
    client.xack(keys.journal, "tests", entry[0])
    assert shape(trace("first").stdout) == "sleepy.created\n   sleepy SKIPPED\n"
    ledger, task_id = Storage(client, settings).ledger, task_id_for("tests", "first", f"{HERE}.sleepy")
    ledger.acknowledge_sent([], [InFlightTask(f"{HERE}.sleepy", "first", entry[0].decode(), "naps").entry(task_id)])
    assert re.search(r"sleepy  SENT  naps$", trace("first").stdout, re.MULTILINE)
    ledger.start_run(task_id, "run", idempotent=True)
    assert re.search(r"sleepy  STARTED  naps$", trace("first").stdout, re.MULTILINE)
    ledger.release(task_id, "run", 0, retries=1)
    assert re.search(r"sleepy  RETRY  naps$", trace("first").stdout, re.MULTILINE)


def test_an_event_without_handlers(trace: Invoke, bus: EventBus, client: Redis, keys: Keys) -> None:
    """An event that no handler of the application takes is marked; one with handlers and an expired one are not."""
    bus.publish(Event(type="sleepy.craeted", id="first"))
    bus.publish(Event(type="sleepy.created", id="second", metadata={"causationId": "first"}))
    first, second, task = trace("first").stdout.splitlines()
    assert "  no handlers  <- this event" in first
    assert "no handlers" not in second + task
    client.delete(keys.event("first"), keys.journal)
    assert "no handlers" not in trace("first").stdout


def test_an_event_that_is_retained_no_more(trace: Invoke, bus: EventBus, client: Redis, keys: Keys) -> None:
    """An expired event keeps its id and its place in the chain."""
    first = bus.publish("other.first", id="first").event
    bus.publish(first.child("other.made", id="below"))
    client.delete(keys.event("first"), keys.journal)
    assert trace("first").stdout.splitlines()[0].startswith("(expired event)  first")
    assert trace("below").stdout.splitlines()[1].startswith("└─ other.made  below")


def test_what_is_not_shown_is_told(trace: Invoke, bus: EventBus) -> None:
    """If too many consequences or first events of a chain exist, the number of hidden ones is shown."""
    bus.publish("other.made", id="root")
    bus.publish_many([Event(type="a.b", id=f"n{number}", metadata={"causationId": "root"}) for number in range(70)])
    bus.publish_many([Event(type="a.b", id=f"c{number}", correlation_id="chain") for number in range(80)])
    lines = trace("root").stdout.splitlines()
    assert len(lines) == 1 + 50 + 1
    assert lines[-1] == "└─ 20 more, not shown"
    assert lines[-2].startswith("├─ ")
    lines = trace("chain").stdout.splitlines()
    assert len(lines) == 50 + 1
    assert lines[-1] == "30 more events start this chain, not shown"
    tree = json.loads(trace("chain", "--json").stdout)
    assert (tree["hidden"], len(tree["roots"])) == (30, 50)
    assert json.loads(trace("root", "--json").stdout)["roots"][0]["hidden"] == 20


def test_redis_that_is_away(trace: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Redis is unavailable, the status is 3, and there is no output for programs."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert trace("e", "--json", expect=3).stdout == ""

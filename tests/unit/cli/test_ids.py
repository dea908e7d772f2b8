"""Ids of which the user has typed the beginning only."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.handlers.handler import task_id_for
from bridge.operations.replay import Replay
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.in_flight import Ended
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import Invoke

IDS = ("100c3e0c-0000-4000-8000-000000000001", "100cffff-0000-4000-8000-000000000002", "short", "short-1")


@pytest.fixture
def events(bus: EventBus) -> None:
    for event_id in IDS:
        bus.publish("dream.created", id=event_id)
    bus.publish("dream.created", id="follower", correlation_id="order-1234")


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize(
    ("given", "full"), [("100c3", IDS[0]), ("100cf", IDS[1]), ("short-", "short-1"), ("f", "follower")]
)
def test_the_beginning_of_an_id_is_enough(invoke: Invoke, given: str, full: str) -> None:
    """get, trace and replay find the only event whose id begins with the given characters."""
    assert json.loads(invoke("get", given).stdout)["id"] == full
    assert f"dream.created  {full}" in invoke("trace", given).stdout
    assert f"dream.created  {full}  " in invoke("replay", "--id", given, "--dry-run").stdout


@pytest.mark.usefixtures("events")
def test_an_id_that_is_complete_is_not_the_beginning_of_another(invoke: Invoke) -> None:
    """An existing id means that event, even if other ids begin with it."""
    assert json.loads(invoke("get", "short").stdout)["id"] == "short"
    assert invoke("trace", "short").stdout.startswith("dream.created  short  ")


@pytest.mark.usefixtures("events")
def test_the_beginning_of_several_ids(invoke: Invoke) -> None:
    """If several ids begin with the given characters, they are listed with their types, and nothing else is done."""
    for command in (["get"], ["trace"], ["replay", "--dry-run", "--id"]):
        result = invoke(*command, "100c", expect=1)
        assert result.stdout == ""
        assert result.stderr.splitlines() == [
            "Error: several ids begin with 100c; give more of one of them:",
            f"  {IDS[0]}  dream.created",
            f"  {IDS[1]}  dream.created",
        ]


@pytest.mark.usefixtures("events")
def test_the_beginning_of_the_id_of_a_chain(invoke: Invoke) -> None:
    """trace finds a chain by the beginning of its correlation id, which get does not find."""
    assert "follower" in invoke("trace", "order-12").stdout
    assert "no event with id order-12" in invoke("get", "order-12", expect=1).stderr


def test_more_ids_than_can_be_listed(invoke: Invoke, bus: EventBus) -> None:
    """At most ten candidates are listed, even if there are thousands."""
    bus.publish_many([Event(type="a.b", id=f"many-{number}") for number in range(2000)])
    lines = invoke("get", "many", expect=1).stderr.splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  and more"


@pytest.mark.usefixtures("events")
def test_events_that_are_gone_are_no_candidates(invoke: Invoke, client: Redis, prefix: str) -> None:
    """An expired event, of which only the mark is left, does not make an id ambiguous."""
    keys = Keys(prefix)
    client.delete(keys.event(IDS[0]))
    client.xtrim(keys.journal, maxlen=0)
    assert json.loads(invoke("get", "100c").stdout)["id"] == IDS[1]


@pytest.mark.usefixtures("events")
def test_what_is_no_beginning_of_an_id_causes_no_scan(invoke: Invoke, client: Redis) -> None:
    """A complete UUID and a text that no id can contain are not searched for."""
    before = client.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"]
    for text in ("975c7603-5f0c-4b53-a1a4-0b7a5a1d6a2e", "a b", "*", ""):
        assert "no event with id" in invoke("get", text, expect=1).stderr
    assert client.info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"] == before


def test_the_beginning_of_the_id_of_a_dead_letter(invoke: Invoke, client: Redis, settings: BridgeSettings) -> None:
    """The dead commands find a dead letter by the beginning of its id or of that of its event, and list several."""
    dead_letters = Storage(client, settings).dead_letters
    for event_id in IDS[:2]:
        event = Event(type="dream.created", id=event_id)
        dead_letters.add(DeadLetter.of_event("failure", "boom", event, event.encode(), "t.exact", event_id))
    first, second = sorted(dead_letters.latest(2), key=lambda one: one.event_id)
    assert first.event_id in invoke("dead", "show", "100c3").stdout
    assert second.dead_letter_id in invoke("dead", "list", "--id", "100cf", "--json").stdout
    assert "1 would" in invoke("dead", "retry", "--id", "100cf", "--dry-run").stdout
    ambiguous = invoke("dead", "purge", "--id", "100c", "--yes", expect=1).stderr
    assert f"  {IDS[0]}  dream.created\n" in ambiguous
    ambiguous = invoke("dead", "show", first.dead_letter_id[:8], expect=1).stderr
    assert f"  {first.dead_letter_id}  failure dream.created t.exact\n" in ambiguous
    assert invoke("dead", "purge", "--id", "100c3", "--yes").stdout == "1 deleted\n"
    assert [one.event_id for one in dead_letters.latest(2)] == [IDS[1]]
    assert "no dead letter has the id 100c3" in invoke("dead", "show", "100c3", expect=1).stderr


def test_a_replay_is_resumed_with_the_beginning_of_an_id(
    invoke: Invoke, client: Redis, settings: BridgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that started a retry resumes it, although the dead letters that it has retried are gone."""
    dead_letters = Storage(client, settings).dead_letters
    for event_id in IDS[:2]:
        event = Event(type="dream.created", id=event_id)
        dead_letters.add(DeadLetter.of_event("failure", "boom", event, event.encode(), "t.exact", event_id))
    command = ["dead", "retry", "--id", "100c3", "--id", "100cf", "--name", "n", "--rate", "1", "--yes"]
    take, steps = Replay._take, iter([Replay._take])

    def interrupted(self: Replay, *given: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return take(self, *given)

    monkeypatch.setattr(Replay, "_take", interrupted)
    assert "--name n resumes it" in invoke(*command, expect=130).stderr
    assert [one.event_id for one in dead_letters.latest(2)] == [IDS[1]]
    monkeypatch.setattr(Replay, "_take", take)
    assert "2 retried" in invoke(*command).stdout
    assert dead_letters.latest(1) == []


def test_the_id_of_a_chain_is_not_that_of_a_dead_letter(
    invoke: Invoke, bus: EventBus, client: Redis, settings: BridgeSettings
) -> None:
    """For another id of the chain, dead show names the dead letters of that chain."""
    storage = Storage(client, settings)
    bus.publish("billing.started", id="first")
    failed = bus.publish("dream.created", id="failed", metadata={"causationId": "first"}).event
    task_id = task_id_for(settings.group, "failed", "t.exact")
    dead_letter = DeadLetter.of_event("failure", "boom", failed, failed.encode(), "t.exact", task_id)
    storage.dead_letters.end_task_with(dead_letter, Ended())
    (stored,) = storage.dead_letters.latest(1)
    says = f"no dead letter has the id first; its chain has bus dead show {stored.dead_letter_id}"
    assert says in invoke("dead", "show", "first", expect=1).stderr

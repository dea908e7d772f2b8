"""``bus groups``, and the deletion of a group with all its keys."""

from __future__ import annotations

import inspect
import json

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.operations.groups import Groups
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.support.apps import Invoke, StartSubscriber


@pytest.fixture
def old(client: Redis, settings: BridgeSettings, bus: EventBus) -> Keys:
    """The group ``old.shop`` of a removed application, with pending entries, a dead letter and tasks in flight."""
    keys = Keys(settings.channel_prefix)
    for number in range(5):
        bus.publish("dream.created", id=f"e{number}")
    Storage(client, settings.model_copy(update={"group": "old.shop"})).consumer("a").create_group("earliest")
    client.xreadgroup("old.shop", "dead", {keys.journal: ">"}, count=2)
    event = Event(type="dream.created", id="e0")
    letter = DeadLetter.of_event("failure", "boom", event, event.encode(), "t.exact", "t1")
    Storage(client, settings.model_copy(update={"group": "old.shop"})).dead_letters.add(letter)
    client.zadd(keys.inflight("old.shop"), {"t1": 1, "t2": 2, "t3": 3})
    return keys


def keys_of_groups(keys: Keys, group: str) -> list[str]:
    """Return the names of all keys that belong to one group, with "x" for further parts of a name."""
    found = []
    for name, method in inspect.getmembers(Keys, inspect.isfunction):
        arguments = list(inspect.signature(method).parameters)[1:]
        if arguments[:1] == ["group"]:
            found.append(getattr(keys, name)(group, *("x" for _ in arguments[1:])))
    return found


def leave_all(client: Redis, keys: Keys, group: str) -> None:
    for key in keys_of_groups(keys, group):
        if not client.exists(key):
            client.set(key, "left")


def test_groups_are_listed(invoke: Invoke, old: Keys, start_subscriber: StartSubscriber) -> None:
    """Groups are listed with their backlog, their last delivery and whether they are this application's."""
    shown = invoke("groups", "list")
    assert "group tests of this application does not exist" in shown.stderr
    header, row = shown.stdout.splitlines()
    assert header.split() == [
        "GROUP",
        "CONSUMERS",
        "PENDING",
        "BACKLOG",
        "LAST",
        "DELIVERED",
        "RETENTION",
        "APPLICATION",
    ]
    assert row.split()[:4] == ["old.shop", "1", "2", "5"]
    start_subscriber()
    assert "this application" in invoke("groups", "list").stdout.splitlines()[2]
    found = {group["name"]: group for group in map(json.loads, invoke("groups", "list", "--json").stdout.splitlines())}
    assert {name: group["own"] for name, group in found.items()} == {"old.shop": False, "tests": True}
    assert found["old.shop"]["last_ms"] > 1_700_000_000_000
    assert {name: group["event_ttl_s"] for name, group in found.items()} == {"old.shop": None, "tests": 86400}


def test_a_bus_without_a_journal_has_no_groups(invoke: Invoke) -> None:
    """A bus without a journal has no groups, and listing them is not an error."""
    result = invoke("groups", "list")
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)


def test_a_group_goes_with_everything_of_its_own(
    invoke: Invoke, old: Keys, client: Redis, settings: BridgeSettings
) -> None:
    """Deleting a group deletes every key with its name, but no key of another group and no event."""
    leave_all(client, old, "old.shop")
    others = ["old", "old.shop2", "oldxshop", "tests"]
    for other in others:
        leave_all(client, old, other)
    before = set(client.keys(f"*{settings.channel_prefix}*"))
    said = invoke("groups", "delete", "old.shop", "--force", "--yes").stdout
    assert said == "group old.shop deleted: 2 pending entries, 1 dead letters, 3 tasks in flight\n"
    gone = before - set(client.keys(f"*{settings.channel_prefix}*"))
    parked = {
        key for key in gone if key.startswith(old.dead_letter_dedup("old.shop", "").encode())
    }  # with the dead letter
    assert gone == parked | {key.encode() for key in keys_of_groups(old, "old.shop")}
    assert client.xinfo_groups(old.journal) == []
    assert client.xlen(old.journal) == 5
    assert (
        "there is no group old.shop; existing groups: none" in invoke("groups", "delete", "old.shop", expect=1).stderr
    )


def test_it_asks_and_says_what_goes(invoke: Invoke, old: Keys, client: Redis) -> None:
    """Without a terminal to confirm on, the command prints what it would delete and ends with status 2."""
    client.execute_command("XGROUP", "DELCONSUMER", old.journal, "old.shop", "dead")
    output = invoke("groups", "delete", "old.shop", expect=2).output
    assert "Permanently delete group old.shop with its 0 pending entries, 1 dead letters, 3 tasks in flight" in output
    assert len(client.xinfo_groups(old.journal)) == 1


def test_a_group_in_use_is_refused(invoke: Invoke, old: Keys, start_subscriber: StartSubscriber, client: Redis) -> None:
    """A group that a subscriber is reading cannot be deleted; another one can, with --force."""
    start_subscriber()
    assert "stop its workers" in invoke("groups", "delete", "tests", "--yes", expect=1).stderr
    invoke("groups", "delete", "old.shop", "--force", "--yes")
    assert [group["name"] for group in client.xinfo_groups(old.journal)] == [b"tests"]


def test_what_is_left_of_a_group_can_be_deleted(invoke: Invoke, old: Keys, client: Redis) -> None:
    """If the journal was deleted, the rest of a group can still be deleted."""
    client.delete(old.journal)
    assert "1 dead letters" in invoke("groups", "delete", "old.shop", "--yes").stdout
    assert not client.exists(old.dead("old.shop"))


def test_many_leftovers_go_as_well(client: Redis, settings: BridgeSettings, bus: EventBus) -> None:
    """Leftover keys are all deleted, even if there are too many for one step."""
    keys = Keys(settings.channel_prefix)
    with client.pipeline(transaction=False) as pipe:
        for number in range(2500):
            pipe.set(keys.dead_letter_dedup("g", str(number)), 1)
        pipe.execute()
    Groups(Storage(client, settings)).delete("g")
    assert not client.keys(keys.dead_letter_dedup("g", "*").replace("{", "?").replace("}", "?"))


def test_events_are_kept_longer_for_a_group_that_is_down(
    invoke: Invoke, old: Keys, client: Redis, settings: BridgeSettings
) -> None:
    """An operator raises the retention of a group that is down; it is not lowered, and a missing group is an error."""
    assert (
        "there is no group shop; existing groups: old.shop" in invoke("groups", "retain", "shop", "3d", expect=1).stderr
    )
    shown = invoke("groups", "retain", "old.shop", "3d")
    assert shown.stdout == "events are kept for group old.shop for 259200 s\n"
    assert " 259200 s" in invoke("groups", "list").stdout
    assert (
        "already kept for group old.shop for 259200 s" in invoke("groups", "retain", "old.shop", "2d", expect=1).stderr
    )
    assert "is not a duration" in invoke("groups", "retain", "old.shop", "3", expect=2).stderr
    assert json.loads(invoke("groups", "retain", "old.shop", "80h", "--json").stdout) == {
        "group": "old.shop",
        "event_ttl_s": 288000,
    }
    at_ms = (client.time()[0] - 48 * 3600) * 1000
    client.delete(old.journal)
    client.xgroup_create(old.journal, "old.shop", id="0", mkstream=True)
    client.xadd(old.journal, {"event": "{}"}, id=f"{at_ms}-1")
    assert Storage(client, settings).journal.trim().removed == 0

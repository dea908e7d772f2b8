"""Routing: which messages and dead letters journal entries become."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.broker.messages import Refused
from bridge.broker.outbox import Outbox
from bridge.handlers.handler import registry, task_id_for
from bridge.storage.entries import Entry
from bridge.storage.storage import Storage
from bridge.subscriber.dispatch.router import Router
from bridge.subscriber.members import Members
from tests.handlers import HANDLERS


def entry(number: int, type: str = "a.b", payload: Any = None, **address: str) -> Entry:
    """Return an entry; with an *address*, one of a replay."""
    metadata = {"replay": {"name": "r"} | address} if address else None
    event = Event(type=type, id=f"e{number}", payload=payload, metadata=metadata)
    return Entry(b"1-%d" % number, event.encode(), **address)


@pytest.fixture
def router(outbox: Outbox, client: Redis, settings: BridgeSettings) -> Router:
    return Router(outbox, registry, settings, Members(Storage(client, settings), registry, "one"))


def test_every_handler_of_an_event_gets_a_message(register_handlers, outbox: Outbox, router: Router) -> None:
    """In the order of the journal; with one message that Celery has to make, a whole entry goes through the outbox."""
    register_handlers("t.all", "t.glob")
    outbox.one_redis = True
    batch = router.route([entry(1), entry(2, "dream.created"), entry(3)])
    assert (batch.push_ids, batch.send_ids) == ([b"1-1", b"1-2", b"1-3"], [])
    sent = [(message.route.task.name, message.event.id) for message in batch.to_push]
    assert sent == [("t.all", "e1"), ("t.all", "e2"), ("t.glob", "e2"), ("t.all", "e3")]
    register_handlers("t.picky")
    batch = router.route([entry(4, payload={"name": "x"})])
    assert (batch.push_ids, batch.send_ids) == ([], [b"1-4"])
    assert [message.route.task.name for message in batch.to_send] == ["t.all", "t.picky"]
    assert not batch.dead_letters


def test_entries_without_a_message_are_acknowledged(register_handlers, router: Router) -> None:
    """Those without a handler, for another group or removed; replayed, lost and unhandled ones are counted."""
    register_handlers("t.exact")
    entries = [entry(1), entry(2, group="others"), Entry(b"1-3", None), entry(4, group="tests")]
    batch = router.route(entries)
    assert batch.push_ids + batch.send_ids == [one.entry_id for one in entries]
    assert not batch.to_push + batch.to_send
    counts = [(b"1-1", "no_handler", "a.b"), (b"1-3", "lost", ""), (b"1-4", "replayed", "a.b")]
    assert batch.counts == [*counts, (b"1-4", "no_handler", "a.b")]


def test_one_bad_handler_or_entry_stops_no_other(register_handlers, router: Router) -> None:
    """A predicate that fails, a handler that is not registered and an entry that is not an event are dead letters."""
    register_handlers("t.all", "t.chosen")
    batch = router.route([entry(1, payload={}), entry(2, group="tests", handler="t.other"), Entry(b"1-3", b"x")])
    assert [message.event.id for message in batch.to_push + batch.to_send] == ["e1"]
    assert [(one.reason, one.handler, one.task_id) for _, one in batch.dead_letters] == [
        ("predicate_failed", "t.chosen", task_id_for("tests", "e1", "t.chosen")),
        ("no_handler", "t.other", task_id_for("tests", "e2", "t.other", "r")),
        ("json", "", ""),
    ]


def test_a_handler_that_an_entry_names_gets_events_of_its_own_types(register_handlers, router: Router) -> None:
    """An event of another type becomes a dead letter that can be retried, and ends no task of the handler."""
    register_handlers("t.exact", "t.plain")
    batch = router.route(
        [
            entry(1, "dream.created", group="tests", handler="t.plain"),
            entry(2, "billing.paid", group="tests", handler="t.plain"),
        ]
    )
    assert [message.event.id for message in batch.to_push + batch.to_send] == ["e2"]
    ((_, dead_letter),) = batch.dead_letters
    assert (dead_letter.reason, dead_letter.handler, dead_letter.task_id) == ("no_handler", "t.plain", "")
    assert dead_letter.detail == "this handler receives no events of type dream.created"
    assert dead_letter.event().id == "e1"


MARKS: dict[str, tuple[Any, bool]] = {
    "of this group": ({"name": "r", "group": "tests"}, True),
    "of an older version": ({"name": "r"}, True),
    "of another group": ({"name": "r", "group": "others"}, False),
    "of one handler": ({"name": "r", "group": "tests", "handler": "t.exact"}, False),
    "without a name": ({"group": "tests"}, False),
    "that is no object": ("tests", False),
    "that is missing": (None, False),
}


@pytest.mark.parametrize("mark", MARKS)
def test_an_address_counts_if_the_mark_of_the_replay_has_it(register_handlers, router: Router, mark: str) -> None:
    """Any program can write an address into the journal; the mark is part of the event, which may be signed."""
    register_handlers("t.exact")
    value, valid = MARKS[mark]
    event = Event(type="dream.created", id="e1", metadata=None if value is None else {"replay": value})
    batch = router.route([Entry(b"1-1", event.encode(), group="tests")])
    sent = [message.task_id for message in batch.to_push + batch.to_send]
    assert sent == ([task_id_for("tests", "e1", "t.exact", "r")] if valid else [])
    assert [(one.reason, one.handler) for _, one in batch.dead_letters] == ([] if valid else [("replay_mismatch", "")])


def test_the_mark_of_a_replay_counts_with_its_address(register_handlers, router: Router) -> None:
    """A replayed event that is copied to an entry for everyone is the task that it was before, which has ended."""
    register_handlers("t.exact")
    event = Event(type="dream.created", id="e1", metadata={"replay": {"name": "r", "group": "others"}})
    batch = router.route([Entry(b"1-1", event.encode()), Entry(b"1-2", event.encode(), handler="t.exact")])
    (message,) = batch.to_push + batch.to_send
    assert (message.entry_id, message.task_id) == (b"1-1", task_id_for("tests", "e1", "t.exact"))
    assert [one.reason for _, one in batch.dead_letters] == ["replay_mismatch"]


@pytest.mark.parametrize(
    ("hops", "dispatched"), [(15, True), (16, False), (10**30, False), (-1, True), (1e9, True), ("16", True)]
)
def test_a_handler_runs_only_if_its_event_can_have_consequences(
    register_handlers, router: Router, hops: Any, dispatched: bool
) -> None:
    """The last event of a chain becomes a dead letter; otherwise its handler would fail when it publishes."""
    register_handlers("t.all")
    data = b'{"id":"e1","type":"a.b","payload":1,"timestamp":1,"metadata":{"hops":%b}}' % json.dumps(hops).encode()
    batch = router.route([Entry(b"1-1", data)])
    assert len(batch.to_push + batch.to_send) == int(dispatched)
    assert [letter.reason for _, letter in batch.dead_letters] == ([] if dispatched else ["hop_limit"])
    if dispatched:
        (message,) = batch.to_push + batch.to_send
        assert message.event.event.child("a.b").hops <= 16


def test_refused_messages_become_dead_letters(register_handlers, outbox: Outbox, router: Router) -> None:
    """The others of the batch stay."""
    register_handlers("t.all")
    outbox.one_redis = False
    batch = router.route([entry(1), entry(2)])
    router.refuse([Refused(batch.to_send[0], "unroutable", "no queue")], batch)
    assert [message.event.id for message in batch.to_send] == ["e2"]
    ((_, dead_letter),) = batch.dead_letters
    assert (dead_letter.reason, dead_letter.event_id, dead_letter.handler) == ("unroutable", "e1", "t.all")


class Timeout(BaseException):
    """As ``gevent.Timeout``."""


class Unprintable(Exception):
    """An error whose text fails as well."""

    def __str__(self) -> str:
        raise ValueError("no text")


NO_EXCEPTIONS = [asyncio.CancelledError, SystemExit, GeneratorExit, KeyboardInterrupt, Timeout]


@pytest.mark.parametrize("kind", [*NO_EXCEPTIONS, Unprintable])
def test_user_code_cannot_end_dispatch(
    register_handlers, outbox: Outbox, router: Router, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a predicate or an overridden method of a task raises becomes a dead letter; other handlers go on."""

    def fail(*_: object) -> Any:
        raise kind("of user code")

    register_handlers("t.exact", "t.picky")
    registry.add(replace(HANDLERS["t.all"], where=fail))
    monkeypatch.setattr(type(outbox._app.tasks["t.picky"]), "shadow_name", fail)
    batch = router.route([entry(1, "dream.created", payload={"name": "x"})])
    router.refuse(outbox.send(batch.to_send), batch)
    assert [(one.reason, one.handler) for _, one in batch.dead_letters] == [
        ("predicate_failed", "t.all"),
        ("message_failed", "t.picky"),
    ]
    assert [message.route.task.name for message in batch.to_send] == ["t.exact"]

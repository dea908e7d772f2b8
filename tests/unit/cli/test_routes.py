"""``bus routes``: every handler, and the tasks that an event of a given type causes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from bridge import EventBus
from bridge.events.patterns import compile_pattern, example_of
from bridge.handlers.handler import registry
from tests.support.apps import Invoke, StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually


@pytest.fixture
def only(invoke: Invoke, register_handlers: Callable[..., None]) -> Callable[..., None]:
    """Register these handlers in place of those of ``invoke``."""

    def register(*names: str) -> None:
        registry.clear()
        register_handlers(*names)

    return register


def rows(invoke: Invoke, *arguments: str, expect: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in invoke("routes", "--json", *arguments, expect=expect).stdout.splitlines()]


def test_every_handler_is_listed(invoke: Invoke, only: Callable[..., None]) -> None:
    """There is one row for each pattern of a handler, with its queue and its options that are not defaults."""
    only("t.glob", "t.own", "t.limited", "t.chosen", "t.delayed")
    found = {(row["handler"], row["events"]): row for row in rows(invoke)}
    assert found.keys() == {
        ("t.chosen", "*"),
        ("t.delayed", "*"),
        ("t.glob", "dream.*"),
        ("t.glob", "dream.created"),
        ("t.limited", "*"),
        ("t.own", "billing.*"),
    }
    assert [found["t.own", "billing.*"][name] for name in ("queue", "options")] == ["own", {}]
    assert found["t.glob", "dream.*"]["queue"] == "celery"
    assert found["t.delayed", "*"]["options"] == {"countdown": 600}
    assert found["t.chosen", "*"]["where"]
    assert found["t.chosen", "*"]["defined_at"].rpartition(":")[0].endswith("tests/handlers.py")
    limited = {"priority": 6, "time_limit": 30, "soft_time_limit": 20, "ignore_result": True}
    assert found["t.limited", "*"]["options"] == limited
    table = invoke("routes").stdout.splitlines()
    assert table[0].split() == ["HANDLER", "EVENTS", "QUEUE", "OPTIONS"]
    assert [line.split() for line in table if "t.delayed" in line] == [["t.delayed", "*", "celery", "countdown=600"]]


def test_rules_have_rows_of_their_own(
    invoke: Invoke, only: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If bridge_routes match some events of a handler, these have a separate row; decorator and first rule win."""
    only("t.all", "t.own")
    rules = {"billing.paid": {"queue": "paid"}, "billing.*": {"queue": "billing", "priority": 3}}
    monkeypatch.setenv("BRIDGE_ROUTES", json.dumps(rules))
    assert [(row["handler"], row["events"], row["queue"], row["rule"]) for row in rows(invoke)] == [
        ("t.all", "*", "celery", ""),
        ("t.all", "billing.paid", "paid", "billing.paid"),
        ("t.all", "billing.*", "billing", "billing.*"),
        ("t.own", "billing.*", "own", "billing.*"),
        ("t.own", "billing.paid", "own", "billing.paid"),
    ]
    assert [row["queue"] for row in rows(invoke, "--match", "billing.paid")] == ["paid", "own"]
    assert "bridge_routes[billing.*]" in invoke("routes").stdout


def test_the_queue_is_where_tasks_really_go(
    invoke: Invoke,
    only: Callable[..., None],
    start_subscriber: StartSubscriber,
    queues: Queues,
    bus: EventBus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The queues that the command prints are those that the subscriber uses."""
    only("t.own", "t.plain")
    rules = {"billing.*": {"queue": "billing"}}
    monkeypatch.setenv("BRIDGE_ROUTES", json.dumps(rules))
    said = {(row["handler"], row["queue"]) for row in rows(invoke, "--match", "billing.paid")}
    assert said == {("t.own", "own"), ("t.plain", "billing")}
    start_subscriber(routes=rules)
    bus.publish("billing.paid", id="e")
    for handler, queue in said:
        eventually(lambda queue=queue: queues.length(queue), f"a message is in {queue}")
        assert [message["headers"]["task"] for message in queues.messages(queue)] == [handler]


def test_no_redis_is_needed(invoke: Invoke, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command contacts neither the bus, nor the broker, nor the result backend."""
    nowhere = "redis://127.0.0.1:1/0"
    monkeypatch.setenv("REDIS_URL", nowhere)
    app.conf.update(broker_url=nowhere, result_backend=nowhere)
    assert [row["handler"] for row in rows(invoke, "--match", "dream.created")] == ["t.exact"]


def test_what_matches_nothing_is_guessed(invoke: Invoke) -> None:
    """For a type without handlers the status is 1, and the error suggests a similar type."""
    assert (
        "no handler matches dream.craeted; did you mean dream.created?"
        in invoke("routes", "--match", "dream.craeted", expect=1).stderr
    )
    assert "is not words of" in invoke("routes", "--match", "a b", expect=2).stderr


def test_without_handlers_it_says_what_to_import(invoke: Invoke, only: Callable[..., None]) -> None:
    """Without handlers the status is 1, and the error suggests importing their modules."""
    only()
    assert "import the modules with @on_event: set imports" in invoke("routes", expect=1).stderr


def test_a_route_that_cannot_work_is_shown(invoke: Invoke, app: Celery) -> None:
    """A route that raises an error is shown with it, all handlers are listed, and the status is 1."""

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("no such thing")

    app.conf.task_routes = [broken]
    found = rows(invoke, expect=1)
    assert {row["problem"] for row in found} == {"KeyError: 'no such thing'"}
    assert len(found) == 2


@pytest.mark.parametrize("pattern", ["a", "*", "dream.*", "a?c", "[abc]x", "[^x]*", r"a\*b", "[a-c]", "a.[^a-z]"])
def test_the_example_of_a_pattern_matches_it(pattern: str) -> None:
    """The example type of a pattern matches that pattern."""
    assert compile_pattern(pattern).fullmatch(example_of(pattern))

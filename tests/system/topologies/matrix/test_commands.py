"""The commands, on each combination of bus and broker."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from click.testing import Result
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from tests.support.apps import StartSubscriber
from tests.support.cli import invoker
from tests.support.processes import Processes
from tests.support.replays import Replays
from tests.support.waiting import eventually
from tests.system.topologies.sites import Site, Waiting

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(
    app: Celery, site: Site, settings: BridgeSettings, register_handlers, monkeypatch: pytest.MonkeyPatch
) -> Invoke:
    """Run ``bus ...`` in this process, with the handler t.exact; return its result."""
    register_handlers("t.exact")
    for name, value in site.environment(settings.channel_prefix).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BRIDGE_GROUP", "tests")
    app.conf.result_backend = site.results_url
    app.conf.result_backend_transport_options = {"global_keyprefix": f"broker:{settings.channel_prefix}"}
    return invoker(app)


def rows(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_events_are_published_found_and_traced(
    invoke: Invoke, start_subscriber: StartSubscriber, site: Site, prefix: str, waiting: Waiting
) -> None:
    """``publish``, ``get`` and ``trace`` work with internal and external events."""
    subscriber = start_subscriber()
    assert invoke("publish", "dream.created", '{"n": 1}', "--id", "a").stdout == "a\n"
    site.shout(prefix, Event(type="dream.created", id="foreign", payload={"n": 2}))
    eventually(lambda: waiting.tasks().total() == 2, "both are dispatched")
    eventually(lambda: subscriber.info().get("dispatched") == 2, "the subscriber has counted them")
    found = [rows(invoke("get", event_id, "--json"))[0]["payload"] for event_id in ("a", "foreign")]
    assert found == [{"n": 1}, {"n": 2}]
    invoke("get", "unknown", expect=1)
    assert "t.exact  SENT" in invoke("trace", "a").stdout
    assert "t.exact  SENT" in invoke("trace", "foreign").stdout


def test_the_state_is_told(invoke: Invoke, start_subscriber: StartSubscriber, bus: EventBus, waiting: Waiting) -> None:
    """``status``, ``groups`` and ``check`` report the same on every bus."""
    subscriber = start_subscriber()
    bus.publish("dream.created", id="a")
    eventually(lambda: waiting.tasks().total() == 1, "it is dispatched")
    eventually(lambda: subscriber.info().get("dispatched"), "the subscriber has counted it")
    status = rows(invoke("status", "--json"))[0]
    (group,) = status["groups"]
    assert (group["name"], group["backlog"], group["in_flight"]) == ("tests", 0, 1)
    assert [row["name"] for row in rows(invoke("groups", "list", "--json"))] == ["tests"]

    def celery() -> dict[str, Any]:
        (measured,) = rows(invoke("status", "--json"))[0]["groups"]
        return next((queue for queue in measured["queues"] or () if queue["name"] == "celery"), {})

    queue = eventually(lambda: (found := celery()).get("messages") and found, "its queue is measured", 15)
    assert (queue["messages"], queue["consumers"], queue["problem"]) == (1, 0, "")
    assert 0 <= queue["oldest_s"] < 30
    checked = invoke("check", expect=1).stdout  # no worker is running, and no server here is durable
    for what in ("bus at", "permissions of the bus user", "clock", "broker"):
        assert f"ok    {what}" in checked, checked
    assert "FAIL  mode" not in checked


def test_what_failed_is_given_once_more(
    invoke: Invoke,
    start_subscriber: StartSubscriber,
    bus: EventBus,
    client: Redis,
    settings: BridgeSettings,
    waiting: Waiting,
) -> None:
    """``dead list``, ``dead retry`` and ``replay`` show dead letters and run events again."""
    Replays(client, settings).park(7)
    bus.publish("dream.created", id="a")
    start_subscriber()
    eventually(lambda: waiting.tasks() == {"t.exact dream.created a": 1}, "it is dispatched")
    (letter,) = rows(invoke("dead", "list", "--json"))
    assert (letter["reason"], letter["event_id"]) == ("failure", "n7")
    assert "1 retried" in invoke("dead", "retry", "--all", "--yes").output
    assert "1 replayed" in invoke("replay", "--id", "a", "--yes").output
    expected = {"t.exact dream.created a": 2, "t.exact dream.created n7": 1}
    eventually(lambda: waiting.tasks() == expected, "both are dispatched again")
    assert invoke("dead", "list", "--json").stdout == ""


def test_events_are_followed(processes: Processes, bus: EventBus, site: Site, prefix: str) -> None:
    """``tail --since`` in a separate process shows events from the journal before live events."""
    bus.publish("dream.created", id="before")
    tail = processes.celery("bus", "tail", "--since", "1h", "--json", name="tail")
    eventually(lambda: '"before"' in processes.log("tail"), "the event from the journal is shown", 30)
    site.shout(prefix, Event(type="dream.created", id="after"))
    eventually(lambda: '"after"' in processes.log("tail"), "the live event is shown")
    tail.send_signal(signal.SIGINT)
    assert tail.wait(10) == 0

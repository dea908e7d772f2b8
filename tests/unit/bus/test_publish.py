"""``publish_event()``: the chain that an event joins, the ids it derives, and the bus of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, current_app, current_task
from celery.contrib.testing.app import setup_default_app
from redis import Redis

from bridge import BusUnavailable, Event, EventBus, Publication, get_bus, publish_event
from bridge.bus import per_bus
from bridge.bus.causation import event_id_for
from bridge.storage.keys import Keys
from bridge.testing.redis_server import RedisServer
from tests.support import ROOT

Run = Callable[..., Any]


@pytest.fixture
def run(server: RedisServer, prefix: str) -> Iterator[Run]:
    """Run a function as a task with a given id, in this process."""
    with Celery("tests", set_as_current=False) as app, setup_default_app(app):
        app.set_current()
        app.conf.update(bridge_redis_url=server.url, bridge_channel_prefix=prefix)

        def run_one(function: Callable[[], Any], task_id: str = "task-1") -> Any:
            task = app.task(name="t.run", shared=False)(function)
            try:
                return task.apply(task_id=task_id, throw=True).get()
            finally:
                app.tasks.unregister("t.run")

        yield run_one
        get_bus().close()


def test_ids_follow_from_task_type_and_order(run: Run) -> None:
    """The n-th event of a type that a task publishes has the same id in every run of that task, and only there."""

    def publish() -> list[Publication]:
        return [publish_event(name) for name in ("a.x", "a.y", "a.x")]

    first, again, other = run(publish), run(publish), run(publish, "task-2")
    ids = [publication.event.id for publication in first]
    assert ids == [event_id_for("task-1", name, order) for name, order in (("a.x", 0), ("a.y", 0), ("a.x", 1))]
    assert [publication.event.id for publication in again] == ids
    assert [publication.duplicate for publication in first + again] == [False] * 3 + [True] * 3
    assert not {publication.event.id for publication in other} & set(ids)


@pytest.mark.parametrize(
    ("header", "causation"),
    [
        ({"event_id": "root", "correlation_id": "c", "hops": 2, "task_id": "t", "tenant": "x"}, ("root", 3)),
        ({"event_id": "root", "correlation_id": "c", "hops": 2}, ("root", 3)),
        ({"tenant": "x"}, None),
    ],
)
def test_the_cause_in_a_message_of_another_version(
    run: Run, header: dict[str, Any], causation: tuple[str, int] | None
) -> None:
    """The header may have fields that this version does not know; if it lacks what is needed, there is no cause."""

    def publish() -> Event[Any]:
        current_task.request.headers = {"bridge_cause": header}  # as Celery does in a worker, and not here
        return publish_event("a.x").event

    event = run(publish)
    found = event.metadata and (event.metadata["causationId"], event.metadata["hops"])
    assert found == causation


def test_what_is_made_for_a_bus_is_made_once(run: Run) -> None:
    """Threads that need a per-bus object at the same time share one; another application has its own."""
    made: list[object] = []

    def make(bus: EventBus) -> object:
        made.append(object())
        return made[-1]

    with ThreadPoolExecutor(8, initializer=current_app.set_current) as pool:
        results = set(pool.map(lambda _: per_bus(make), range(100)))
    assert results == set(made) == {per_bus(make)}
    assert len(made) == 1
    url = get_bus().settings.url
    with Celery("other", set_as_current=False) as other, setup_default_app(other):
        other.set_current()
        other.conf.bridge_redis_url = url
        assert per_bus(make) is not made[0]


def test_a_run_that_publishes_something_else_loses_nothing(run: Run) -> None:
    """If the second run of a task publishes other events than the first, each distinct event is published once."""
    taken = iter(["ab", "bc", "bc"])

    def publish() -> list[Publication]:
        return [publish_event("a.x", payload) for payload in next(taken)]

    first, second, third = run(publish), run(publish), run(publish)
    published = {one.event.id: one.event.payload for one in first + second + third}
    assert sorted(published.values()) == ["a", "b", "b", "c"]
    assert [one.duplicate for one in first + second + third] == [False] * 4 + [True] * 2
    assert not any(one.conflict for one in first + second + third)


def test_an_explicit_id_wins_and_does_not_count(run: Run) -> None:
    """An explicit id is used unchanged and does not shift the derived ids."""

    def publish() -> list[str]:
        return [publish_event("a.x", id="mine").event.id, publish_event("a.x").event.id]

    assert run(publish) == ["mine", event_id_for("task-1", "a.x", 0)]


def test_a_failed_publication_is_tried_under_the_same_id(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that catches BusUnavailable and publishes again uses the same id as the first attempt."""

    def publish() -> str:
        bus = get_bus()
        with monkeypatch.context() as patch:
            patch.setattr(bus, "_send", lambda *_: (_ for _ in ()).throw(BusUnavailable("away")))
            with pytest.raises(BusUnavailable):
                publish_event("a.x")
        return publish_event("a.x").event.id

    assert run(publish) == event_id_for("task-1", "a.x", 0)


def test_outside_a_task_ids_are_random_and_chains_begin(run: Run) -> None:
    """Outside a task each event has a random id, no cause and no correlation id."""
    first, second = publish_event("a.x").event, publish_event("a.x").event
    assert first.id != second.id
    assert (first.correlation_id, first.metadata, first.hops) == (None, None, 0)


def test_a_forked_child_publishes_on_its_own_connection(run: Run, client: Redis, prefix: str) -> None:
    """After a fork the child publishes on a new connection, and the bus of the parent still works."""
    publish_event("a.parent")
    pid = os.fork()
    if pid == 0:  # the child must not return into pytest
        try:
            publish_event("a.child")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    publish_event("a.parent")
    types = [Event.decode(fields[b"event"], max_bytes=10_000).type for _, fields in client.xrange(Keys(prefix).journal)]
    assert types == ["a.parent", "a.child", "a.parent"]


def test_threads_of_a_web_server_use_the_installed_application(server: RedisServer, prefix: str) -> None:
    """publish_event() in a thread that did not create the application uses the settings of the installed one."""
    program = f"""
import threading
from celery import Celery, current_app, current_task
import bridge
app = Celery("shop")
app.conf.update(bridge_redis_url={server.url!r}, bridge_channel_prefix={prefix!r})
bridge.install(app)
thread = threading.Thread(target=lambda: print(bridge.publish_event("a.b").event.source, end=""))
thread.start()
thread.join()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "REDIS_"))}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout == "shop"
    with Redis.from_url(server.url) as client:
        assert client.xlen(Keys(prefix).journal) == 1


def test_eager_tasks(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """With task_always_eager, one log line of the process says that published events call no handler here."""
    current_app.conf.task_always_eager = True
    for _ in range(2):
        publish_event("a.b")
    assert len([line for line in caplog.messages if "publish_event() calls no handler" in line]) == 1


def test_a_process_without_an_application(server: RedisServer, prefix: str, tmp_path: Path) -> None:
    """Without an application and an address, the error says what to do; an application that is imported later is used.

    Also by threads, for which Celery keeps the application that it makes for a process without one.
    """
    code = f"""
        import os, sys, threading
        from bridge import SettingsError, get_bus, publish_event
        sys.path = [path for path in sys.path if path not in ("", {str(ROOT)!r})]  # to the configuration of the example
        try:
            publish_event("a.b")
        except SettingsError as error:
            print(error)
        os.environ["BRIDGE_REDIS_URL"] = "redis://env/1"
        print(get_bus().settings.url)
        del os.environ["BRIDGE_REDIS_URL"]
        from celery import Celery
        import bridge
        app = Celery("shop", broker={server.url!r})
        bridge.install(app, channel_prefix={prefix!r})
        print(publish_event("a.b").duplicate)
        thread = threading.Thread(target=lambda: print(get_bus().settings.group))
        thread.start()
        thread.join()
    """
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    problem, *others = done.stdout.splitlines()
    assert "import the module that makes yours and calls bridge.install(app)" in problem
    assert others == ["redis://env/1", "False", "shop"]

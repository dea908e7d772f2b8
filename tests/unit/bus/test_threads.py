"""``publish_event()`` in threads that a handler starts: it knows its task there, too."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, _state
from celery.app.trace import build_tracer
from celery.contrib.testing.app import setup_default_app

from bridge import Event, EventTask, HopLimitExceeded, get_bus, publish_event
from bridge.bus import causation, install_tracking, running
from bridge.telemetry import LogThrottle
from bridge.testing.redis_server import RedisServer
from tests.support.apps import make_app
from tests.support.spans import TRACE_ID, TRACEPARENT, recorded_spans

EVENT = Event(type="a.b", id="e1", correlation_id="c1", metadata={"hops": 3})
NAMES = ["x", "y", "z"]

Publish = Callable[[str], Any]
#: Arguments: a pool that lives longer than the tasks that use it, what each thread does, and with what.
Way = Callable[[ThreadPoolExecutor, Publish, list[str]], None]


def in_plain_threads(pool: ThreadPoolExecutor, publish: Publish, names: list[str]) -> None:
    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
        thread.join()


def in_own_pool(pool: ThreadPoolExecutor, publish: Publish, names: list[str]) -> None:
    with ThreadPoolExecutor() as own_pool:
        list(own_pool.map(publish, names))


def in_shared_pool(pool: ThreadPoolExecutor, publish: Publish, names: list[str]) -> None:
    list(pool.map(publish, names))


def in_copied_contexts(pool: ThreadPoolExecutor, publish: Publish, names: list[str]) -> None:
    for name in names:
        pool.submit(contextvars.copy_context().run, publish, name).result()


def in_asyncio_threads(pool: ThreadPoolExecutor, publish: Publish, names: list[str]) -> None:
    async def publish_all() -> None:
        await asyncio.gather(*(asyncio.to_thread(publish, name) for name in names))

    asyncio.run(publish_all())


WAYS = [in_plain_threads, in_own_pool, in_shared_pool, in_copied_contexts, in_asyncio_threads]


@pytest.fixture
def app(server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An application whose tasks run in this process as in a worker that has not run any task before."""
    with make_app(server.url, prefix) as app, setup_default_app(app):
        app.set_current()
        app.conf.update(bridge_redis_url=server.url, bridge_channel_prefix=prefix, bridge_group="tests")
        app.conf.update(task_ignore_result=True, result_backend="disabled://")
        monkeypatch.setattr(_state, "default_app", app)  # in all threads, as in a worker
        for name in ("_independent", "_last"):
            monkeypatch.setattr(running, name, None)
        monkeypatch.setattr(causation, "_throttle", LogThrottle(math.inf))
        install_tracking()
        yield app
        get_bus().close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def run(app: Celery, function: Callable[[Event[Any]], Any], task_id: str = "task-1", event: Event[Any] = EVENT) -> None:
    """Run a function as the handler of *event* in a worker; each time, as if a retry or a copy had been delivered."""

    def handler(event: Event[Any]) -> None:
        function(event)

    task: Any = app.task(base=EventTask, idempotent=False, name=f"t.{task_id}", shared=False)(handler)
    app.finalize()
    task.__trace__ = build_tracer(task.name, task, app=app)
    request = {"id": task_id, "task": task.name, "delivery_info": {}}
    outcome = task.__trace__(task_id, [event.to_dict()], {}, request)
    assert outcome.info is None, outcome.retval
    app.tasks.unregister(task.name)


def published(app: Celery) -> list[Event[Any]]:
    """Return the events in the journal, in order."""
    bus = get_bus()
    rows: Any = bus.client.xrange(bus.storage.keys.journal)
    return [Event.decode(fields[b"event"], max_bytes=10_000) for _, fields in rows]


@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_runs_again_publishes_nothing_twice_in_threads(
    app: Celery, pool: ThreadPoolExecutor, way: Way
) -> None:
    """In another order, each event is published once, and all of them join the chain of the handler's event."""
    for names in (NAMES, list(reversed(NAMES))):
        run(app, lambda event, names=names: way(pool, lambda name: publish_event("a.x", {"name": name}), names))
    events = published(app)
    assert sorted(event.payload["name"] for event in events) == NAMES
    assert {(event.correlation_id, event.hops) for event in events} == {("c1", 4)}
    assert {(event.metadata or {})["taskId"] for event in events} == {"task-1"}


def test_equal_events_of_threads_are_all_published(app: Celery) -> None:
    """Threads that publish the same at the same time publish as many events as they say, in each run the same ones."""

    def publish_nine(event: Event[Any]) -> None:
        with ThreadPoolExecutor(9) as pool:
            list(pool.map(lambda _: publish_event("a.x", "same"), range(9)))

    for _ in range(2):
        run(app, publish_nine)
    assert len(published(app)) == 9


@pytest.mark.parametrize("way", WAYS)
def test_the_trace_goes_on_in_threads(
    app: Celery, pool: ThreadPoolExecutor, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the threads of a handler publish belongs to the span of its run."""
    event = EVENT.model_copy(update={"metadata": {"traceparent": TRACEPARENT}})
    with recorded_spans(monkeypatch) as exporter:
        run(app, lambda event: way(pool, lambda name: publish_event("a.x", {"name": name}), NAMES), event=event)
    *publications, process = exporter.get_finished_spans()
    assert (process.name, len(publications)) == ("process a.b", 3)
    assert process.context is not None
    assert f"{process.context.trace_id:032x}" == TRACE_ID
    parents = [span.parent for span in publications]
    assert {parent and parent.span_id for parent in parents} == {process.context.span_id}


@pytest.mark.parametrize("way", WAYS)
def test_a_chain_through_threads_ends(app: Celery, pool: ThreadPoolExecutor, way: Way) -> None:
    """max_hops holds in threads."""
    refused: list[str] = []

    def publish(name: str) -> None:
        try:
            publish_event("a.b", name)
        except HopLimitExceeded:
            refused.append(name)

    last = Event(type="a.b", metadata={"hops": get_bus().settings.max_hops})
    run(app, lambda event: way(pool, publish, NAMES), event=last)
    assert sorted(refused) == NAMES
    assert not published(app)


def test_threads_of_several_tasks(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """If it is not known to which of several tasks a thread belongs, this is logged once, and the chain ends anyway."""
    both = threading.Barrier(2, timeout=10)

    def handler(event: Event[Any]) -> None:
        both.wait()
        in_plain_threads(pool, lambda name: publish_event("a.x", name), NAMES)
        both.wait()

    deep = Event(type="a.b", metadata={"hops": 9})
    app.finalize()  # not by two threads, each of which adds a task
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, app, handler, f"task-{number}", event) for number, event in enumerate((EVENT, deep))]
        for one in runs:
            one.result(20)
    events = published(app)
    assert len(events) == 6
    assert {(event.hops, event.correlation_id) for event in events} == {(10, None)}
    assert caplog.text.count("which task has started the thread is not known") == 1


def test_a_thread_that_outlives_its_task(app: Celery) -> None:
    """What a thread publishes after the end of its task counts as the next hop, so that it causes no endless chain."""
    ended = threading.Event()

    def publish() -> None:
        assert ended.wait(10)
        publish_event("a.b")

    thread = threading.Thread(target=publish)
    run(app, lambda event: thread.start())
    ended.set()
    thread.join(10)
    (event,) = published(app)
    assert event.hops == 4


def test_a_thread_of_the_application_belongs_to_no_task(app: Celery) -> None:
    """A thread that is older than the first task of the process publishes for itself: every event, without a cause."""
    wake, done = threading.Semaphore(0), threading.Semaphore(0)

    def publish() -> None:
        for _ in range(2):
            wake.acquire(timeout=10)
            publish_event("alive", "same")
            done.release()

    thread = threading.Thread(target=publish)
    thread.start()

    def handler(event: Event[Any]) -> None:
        wake.release()
        assert done.acquire(timeout=10)

    for _ in range(2):
        run(app, handler)
    thread.join(10)
    assert [(event.hops, event.correlation_id) for event in published(app)] == [(0, None)] * 2

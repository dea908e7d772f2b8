"""The class of a handler's task: that of its application, or ``base=``, with what the bridge needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from celery import Celery, Task, _state, current_app, current_task, shared_task
from celery.app.trace import build_tracer
from celery.contrib.testing.app import setup_default_app

from bridge import Event, EventTask, InvalidHandler, get_bus, on_event
from bridge.bus.bus import EventBus
from bridge.handlers.handler import registry
from bridge.testing.redis_server import RedisServer
from tests.support.task_classes import CONTEXT, TASK_CLASSES, CallingSuper, ContextTask, Meta, Metaclassed

EVENT = Event(type="a.b", id="e1")


@pytest.fixture(autouse=True)
def handlers_of_one_test() -> Iterator[None]:
    """The handlers of a test are in no application of another one."""
    handlers, finalizers = list(registry), set(_state._on_app_finalizers)  # type: ignore[attr-defined]
    registry.clear()
    yield
    _state._on_app_finalizers = finalizers  # type: ignore[attr-defined]
    registry.clear()
    for handler in handlers:
        registry.add(handler)


@contextmanager
def application(name: str = "t", **options: Any) -> Iterator[Celery]:
    """Make an application that is current, as in a web server."""
    with (
        Celery(name, set_as_current=False, broker="memory://", backend="cache+memory://", **options) as app,
        setup_default_app(app),
    ):
        app.set_current()
        yield app


def context(event: Event) -> str:
    return CONTEXT.get()


@pytest.mark.parametrize(("task_cls", "expected"), TASK_CLASSES.values(), ids=list(TASK_CLASSES))
def test_handlers_have_the_task_class_of_the_application(task_cls: Any, expected: str) -> None:
    """Called as a function and run eagerly, a handler runs inside ``__call__`` of the application's task class."""
    handler = on_event("a.b", name="c.context")(context)
    with application(task_cls=task_cls) as app:
        assert isinstance(handler, EventTask)
        assert isinstance(handler, app.Task)
        assert handler(EVENT) == handler(EVENT.to_dict()) == expected
        assert handler.apply(args=[EVENT.to_dict()]).get() == expected
    assert CONTEXT.get() == "none"
    assert task_cls is not Metaclassed or {"EventTask", "context"} <= set(Meta.made)


@pytest.mark.parametrize(("task_cls", "expected"), TASK_CLASSES.values(), ids=list(TASK_CLASSES))
def test_in_a_worker(task_cls: Any, expected: str, server: RedisServer, prefix: str) -> None:
    """A worker calls ``__call__`` inside the run of the task, whose copies are skipped when it has ended."""
    handler = on_event("a.b", name="c.context")(context)
    with application(task_cls=task_cls) as app, bus_of(app, server, prefix) as bus:
        task: Any = app.tasks["c.context"]
        task.__trace__ = build_tracer(task.name, task, app=app)
        request = {"id": "t1", "task": task.name, "delivery_info": {}}
        assert task.__trace__("t1", [EVENT.to_dict()], {}, request).retval == expected
        assert bus.storage.ledger.has_ended("t1")
        again = task.__trace__("t1", [EVENT.to_dict()], {}, request)
        assert again.info.state == "IGNORED"
        assert getattr(handler, "calls", 1) == 1


@contextmanager
def bus_of(app: Celery, server: RedisServer, prefix: str) -> Iterator[EventBus]:
    app.conf.update(bridge_redis_url=server.url, bridge_channel_prefix=prefix, bridge_group="tests")
    with get_bus() as bus:
        yield bus


def test_an_error_of_the_task_class_is_one_of_the_handler(server: RedisServer, prefix: str) -> None:
    """What ``__call__`` raises after the handler, as a context that fails at its end, leaves a dead letter."""

    class Failing(Task):  # type: ignore[type-arg]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.run(*args, **kwargs)
            raise RuntimeError("teardown")

    on_event("a.b", name="c.context")(context)
    with application(task_cls=Failing) as app, bus_of(app, server, prefix) as bus:
        task: Any = app.tasks["c.context"]
        task.__trace__ = build_tracer(task.name, task, app=app)
        task.__trace__("t1", [EVENT.to_dict()], {}, {"id": "t1", "task": task.name, "delivery_info": {}})
        assert [(one.reason, one.detail) for one in bus.storage.dead_letters.latest(10)] == [
            ("failure", "RuntimeError: teardown")
        ]


def test_each_application_has_its_own() -> None:
    """Of two applications in one process, each runs the handler with its task class, whenever it was created."""
    with ExitStack() as stack:
        early = stack.enter_context(Celery("early", set_as_current=False, task_cls=ContextTask))
        early.finalize()
        handler = on_event("a.b", name="c.context")(context)
        late = stack.enter_context(Celery("late", set_as_current=False))
        plain: Any = late.tasks["c.context"]
        mixed: Any = early.tasks["c.context"]
        assert (mixed(EVENT), plain(EVENT)) == ("pushed", "none")
        assert (mixed.describe(), mixed.app, plain.app) == ("c.context of early", early, late)
        assert not hasattr(plain, "describe")
        with setup_default_app(early):
            early.set_current()
            assert handler(EVENT) == "pushed"


def test_task_that_an_application_sets_instead() -> None:
    """``app.Task = ...``, as in documentation of Flask before 2.2, has the same effect as ``task_cls``."""
    handler = on_event("a.b", name="c.context")(context)
    with application() as app:
        base: Any = app.Task

        class Older(base):  # type: ignore[misc]
            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                token = CONTEXT.set("older")
                try:
                    return base.__call__(self, *args, **kwargs)
                finally:
                    CONTEXT.reset(token)

        app.Task = Older  # type: ignore[misc]
        assert handler(EVENT) == handler.apply(args=[EVENT.to_dict()]).get() == "older"


def test_base_takes_the_place_of_the_task_class() -> None:
    """As in Celery, ``base=`` of one handler wins over the class of the application, and may be an ordinary one."""

    class Database(Task):  # type: ignore[type-arg]
        abstract = True
        connection = "open"

    plain = on_event("a.b", name="c.own_base", base=EventTask)(context)
    database = on_event("a.b", name="c.database", base=Database)(context)
    with application(task_cls=ContextTask):
        assert (plain(EVENT), database(EVENT)) == ("none", "none")
        assert isinstance(database, EventTask)
        assert isinstance(database, Database)
        assert database.connection == "open"


def test_attributes() -> None:
    """Attributes of the task class are the defaults of handlers, except those that keep the bridge's promises."""

    class Defaults(ContextTask):
        abstract = True
        autoretry_for = (OSError,)
        retry_kwargs = {"max_retries": 1, "countdown": 0}
        typing = False
        acks_late = False
        reject_on_worker_lost = False
        track_started = True
        ignore_result = True

    runs: list[int] = []

    def failing(event: Event) -> None:
        runs.append(1)
        raise OSError("away")

    handler = on_event("a.b", name="c.failing", rate_limit="1/s")(failing)
    with application(task_cls=Defaults):
        assert (handler.rate_limit, handler.max_retries, handler.typing) == ("1/s", 7, False)
        assert (handler.acks_late, handler.reject_on_worker_lost, handler.track_started) == (True, True, False)
        assert handler.ignore_result
        assert handler.apply(args=[EVENT.to_dict()]).state == "FAILURE"
        assert len(runs) == 2


def test_current_application_and_task() -> None:
    """Inside a handler, ``self.app``, ``current_app`` and ``current_task`` are those of its application."""
    seen: list[Any] = []

    @on_event("a.b", name="c.current", bind=True)
    def bound(self: Any, event: Event) -> None:
        seen.append((self.app.main, current_app.main, current_task.name, self.describe()))

    with application("shop", task_cls=CallingSuper):
        bound.apply(args=[EVENT.to_dict()])
    assert seen == [("shop", "shop", "c.current", "c.current of shop")]


def test_classes_for_messages_in_workers_are_those_of_the_bridge() -> None:
    """``Request`` and ``Strategy`` of the application's class are for its other tasks."""

    class Own(Task):  # type: ignore[type-arg]
        abstract = True
        Request = "shop.requests:Request"
        Strategy = "shop.requests:strategy"

    handler: Any = on_event("a.b", name="c.context")(context)
    with application(task_cls=Own):
        assert (handler.Request, handler.Strategy) == (EventTask.Request, EventTask.Strategy)


def plain_class(**attributes: Any) -> type:
    return type("B", (Task,), attributes)


REFUSED: dict[str, tuple[Any, str]] = {
    "Strategy": (type("B", (EventTask,), {"Strategy": "a:b"}), "must not set Strategy"),
    "Request": (plain_class(Request="a:b"), "must not set Request"),
    "pickle": (plain_class(serializer="pickle"), "has serializer='pickle'"),
    "no task class": (dict, r"must be a task class: .* celery\.Task or of bridge\.EventTask"),
    "no class": ("EventTask", "base='EventTask' must be a task class"),
}


@pytest.mark.parametrize(("base", "text"), REFUSED.values(), ids=list(REFUSED))
def test_bases_that_cannot_work(base: Any, text: str) -> None:
    """A ``base=`` that can never work is refused when the module is imported."""
    with pytest.raises(InvalidHandler, match=text):
        on_event("a", base=base)


def test_task_class_with_pickle() -> None:
    """A task class with pickle is refused, by its name, when the handlers of its application are made."""

    class Pickling(Task):  # type: ignore[type-arg]
        abstract = True
        serializer = "pickle"

    on_event("a.b", name="c.context")(context)
    with (
        application(task_cls=Pickling) as app,
        pytest.raises(InvalidHandler, match=r"Pickling'> has serializer='pickle', which allows anyone"),
    ):
        app.finalize()


DECORATORS = {
    "shared": lambda app, function: shared_task(name="c.other")(function),
    "lazy": lambda app, function: app.task(name="c.other")(function),
    "not lazy": lambda app, function: app.task(name="c.other", lazy=False)(function),
    "twice": lambda app, function: on_event("a.c", name="c.other")(function),
}


@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
def test_a_task_is_no_handler(decorate: Any) -> None:
    """A second decorator is refused: one of both would make an ordinary task, which cannot run an event."""
    with application() as app, pytest.raises(InvalidHandler, match="was given a task; remove the other decorator"):
        on_event("a.b")(decorate(app, context))

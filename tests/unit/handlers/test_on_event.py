"""``@on_event``: which arguments and functions it refuses, what it registers, and the task it creates."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.contrib.testing.app import setup_default_app
from pydantic import BaseModel

from bridge.bus.causation import current_event
from bridge.errors import InvalidEvent, InvalidHandler
from bridge.events.event import Event
from bridge.handlers.decorator import on_event
from bridge.handlers.handler import Handler, Registry, registry
from bridge.handlers.task import EventTask

if TYPE_CHECKING:
    from decimal import Decimal


class Dream(BaseModel):
    dream_id: int


@pytest.fixture(autouse=True)
def app() -> Iterator[Celery]:
    """An application that is current for one test, and a registry without the handlers of other modules."""
    before = list(registry)
    registry.clear()
    with (
        Celery("t", set_as_current=False, broker="memory://", backend="cache+memory://") as app,
        setup_default_app(app),
    ):
        yield app
    registry.clear()
    for handler in before:
        registry.add(handler)


def takes_event(event: Event) -> Event:
    return event


def untyped(event):
    return event


def no_argument() -> None: ...


def two_arguments(event: Event, other: int) -> None: ...


def keyword_only(*, event: Event) -> None: ...


async def coroutine(event: Event) -> None: ...


def takes_dict(event: dict[str, Any]) -> None: ...


def takes_optional(event: Event | None) -> None: ...


def takes_model(event: Dream) -> None: ...


def unknown_at_run_time(event: Event[Decimal]) -> None: ...


class CallableObject:
    def __call__(self, event: Event) -> None: ...


MISUSES: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no type": ((), {}, r"needs one or more event types: @on_event\('dream.created'\)"),
    "no parentheses": ((takes_event,), {}, r"needs one or more event types: @on_event\('dream.created'\)"),
    "list": ((["a", "b"],), {}, "needs one or more event types"),
    "empty type": (("a", ""), {}, r"@on_event\(''\) cannot match any event: an empty pattern"),
    "set not closed": (("a[b",), {}, r"cannot match any event: .* not closed with '\]'"),
    "type with a space": (("a b",), {}, r"@on_event\('a b'\) cannot match any event: .* not words of"),
    "long type": (("x" * 201,), {}, "cannot match any event"),
    "missing type": (("undefined",), {}, "cannot match any event: .* JavaScript writes for a missing type"),
    "misspelt option": (("a",), {"quue": "q"}, r"no option 'quue'; did you mean 'queue'\?"),
    "unlike option": (("a",), {"zzzzzz": 1}, "no option 'zzzzzz'; it is not an option of a Celery task"),
    "our own attribute": (("a",), {"event_model": Event}, "no option 'event_model'"),
    "our own class": (("a",), {"Request": "celery.worker.request:Request"}, "no option 'Request': the bridge's own"),
    "method of a task": (("a",), {"on_failure": print}, "no option 'on_failure'"),
    "unknown compression": (("a",), {"compression": "nope"}, "kombu does not know 'nope'"),
    "unknown delivery mode": (("a",), {"delivery_mode": "bogus"}, "kombu does not know 'bogus'"),
    "where no function": (("a",), {"where": "payload.yes"}, "where='payload.yes' must be a function"),
}


@pytest.mark.parametrize(("patterns", "options", "text"), MISUSES.values(), ids=list(MISUSES))
def test_misuse(patterns: tuple[Any, ...], options: dict[str, Any], text: str) -> None:
    """Arguments that can never work are refused when the module is imported, and the error explains what to change."""
    with pytest.raises(InvalidHandler, match=text):
        on_event(*patterns, **options)


UNFIT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no argument": (
        no_argument,
        {},
        r"no_argument\(\).* must take the event as its only argument \(or use bind=True\)",
    ),
    "two arguments": (two_arguments, {}, "must take the event as its only argument"),
    "keyword only": (keyword_only, {}, "must take the event as its only argument"),
    "bound without the task": (takes_event, {"bind": True}, "takes_event.* must take the task and the event"),
    "async": (coroutine, {}, r"coroutine is async, .*asyncio\.run"),
    "dict": (takes_dict, {}, r"takes_dict gets an Event; annotate it as Event or Event\[Model\], not dict"),
    "optional": (takes_optional, {}, r"annotate it as Event or Event\[Model\]"),
    "bare model": (takes_model, {}, r"annotate it as Event or Event\[Model\]"),
    "name for type checkers only": (unknown_at_run_time, {}, "'Decimal' is not defined; .* needed at run time"),
    "partial": (functools.partial(takes_event), {}, "must be a function"),
    "callable object": (CallableObject(), {}, "must be a function"),
}


@pytest.mark.parametrize(("function", "options", "text"), UNFIT.values(), ids=list(UNFIT))
def test_unfit_functions(function: Any, options: dict[str, Any], text: str) -> None:
    """A function that cannot take an event is refused, and nothing is registered."""
    with pytest.raises(InvalidHandler, match=text):
        on_event("a", **options)(function)
    assert list(registry) == []


def test_registration() -> None:
    """The registered handler has the name, patterns, predicate and send options of its function."""

    def yes(event: Event) -> bool:
        return bool(event.payload)

    task = on_event("dream.created", "nap.*", where=yes, queue="q", priority=3, max_retries=7, time_limit=9)(
        takes_event
    )
    name = f"{__name__}.takes_event"
    place = f"{__file__}:{takes_event.__code__.co_firstlineno}"
    assert list(registry) == [Handler(name, ("dream.created", "nap.*"), yes, {"queue": "q", "priority": 3}, place)]
    assert task.name == name
    assert (task.max_retries, task.time_limit, task.acks_late, task.reject_on_worker_lost) == (7, 9, True, True)


def test_task_options_win() -> None:
    """Name, base class and late acknowledgement can be chosen as for any Celery task."""

    class Base(EventTask):
        abstract = True
        rate_limit = "1/s"

    task = on_event("a", name="shop.mine", base=Base, acks_late=False, ignore_result=True)(takes_event)
    assert isinstance(task, Base)
    assert (task.name, task.acks_late, task.ignore_result, task.rate_limit) == ("shop.mine", False, True, "1/s")
    assert [handler.task_name for handler in registry] == ["shop.mine"]


def test_the_task_is_in_every_application(app: Celery) -> None:
    """Like a shared task, a handler belongs to applications created before and after it."""
    name = on_event("a")(takes_event).name
    with Celery("later", set_as_current=False) as later:
        assert name in app.tasks
        assert name in later.tasks


def test_matching() -> None:
    """A type matches its handlers in order of registration, each once even if several of its patterns match."""
    known = Registry()
    for name, patterns in {
        "one": ("dream.*", "dream.created", "*"),
        "two": ("nap.*",),
        "three": ("*.created",),
    }.items():
        known.add(Handler(name, patterns))
    for event_type, names in {"dream.created": ["one", "three"], "nap.x": ["one", "two"], "x": ["one"]}.items():
        assert [handler.task_name for handler in known.matching(event_type)] == names
    assert known.matching("x") is known.matching("x")


def test_registry_forgets_what_it_has_to() -> None:
    """A handler that is added or cleared takes effect immediately, although matches are cached."""
    known = Registry()
    assert known.matching("a") == ()
    known.add(Handler("one", ("a",)))
    known.add(Handler("two", ("a",)))
    assert len(known.matching("a")) == 2
    known.add(Handler("three", ("b",)))
    assert len(known.matching("b")) == 1
    known.add(Handler("four", ("a",)))
    assert [handler.task_name for handler in known.matching("a")] == ["one", "two", "four"]
    assert [handler.task_name for handler in known] == known.names == ["one", "two", "three", "four"]
    assert (known.get("three"), known.get("five")) == (Handler("three", ("b",)), None)
    known.clear()
    assert (known.matching("a"), known.matching("b"), known.get("one"), list(known)) == ((), (), None, [])


def test_cached_types_are_bounded() -> None:
    """The number of cached types is limited, so a program that invents types does not fill the memory."""
    known = Registry(max_cached_types=10)
    known.add(Handler("one", ("*",)))
    for number in range(100):
        assert len(known.matching(f"t{number}")) == 1
        assert len(known._by_type) <= 10


def test_registry_in_threads() -> None:
    """No thread sees a cached match that lacks a handler added before."""
    known, failures = Registry(), list[str]()

    def work(name: str) -> None:
        for number in range(100):
            known.add(Handler(f"{name}{number}", ("a",)))
            if f"{name}{number}" not in {handler.task_name for handler in known.matching("a")}:
                failures.append(f"{name}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(known.matching("a")) == 300


@pytest.mark.parametrize("function", [takes_event, untyped], ids=["annotated", "not annotated"])
def test_plain_call(function: Any) -> None:
    """A handler can be called as a function, with an event or with its dict."""
    handler, event = on_event("a")(function), Event(type="a", payload={"x": 1}, source="s")
    assert handler(event) is event
    assert handler(event.to_dict()) == event
    with pytest.raises(InvalidEvent, match="type"):
        handler({"type": "a b"})


def test_bound_call() -> None:
    """With ``bind=True`` the task is the first argument, in a direct call and in an eager run."""

    @on_event("a", bind=True, name="t.bound")
    def bound(self: EventTask, event: Event) -> tuple[str | None, bool, str]:
        return self.name, bool(self.request.is_eager), event.id

    event = Event(type="a")
    assert bound(event) == ("t.bound", False, event.id)
    for argument in (event, event.to_dict()):
        assert bound.apply(args=[argument]).get() == ("t.bound", True, event.id)


def test_eager_retry() -> None:
    """A handler that retries itself runs again, also in an eager run."""

    @on_event("a", bind=True, name="t.retrying", max_retries=2, default_retry_delay=0)
    def retrying(self: EventTask, event: Event) -> int:
        if self.request.retries < 2:
            raise self.retry()
        return int(self.request.retries)

    assert retrying.apply(args=[Event(type="a").to_dict()]).get() == 2


def test_typed_call() -> None:
    """``Event[Model]`` receives the payload as the model; an invalid payload never reaches the function."""

    @on_event("a", name="t.typed_call")
    def typed(event: Event[Dream]) -> int:
        return event.payload.dream_id + 1

    plain = Event(type="a", payload={"dream_id": 1})
    assert [typed(given) for given in (plain, plain.to_dict(), Event[Dream].model_validate(plain))] == [2, 2, 2]
    with pytest.raises(InvalidEvent, match=r"payload\.dream_id"):
        typed(Event(type="a", payload={"dream_id": "one"}))


def test_current_event_inside_a_call() -> None:
    """While the function runs, its event is the current one; afterwards no event is current, even after an error."""

    @on_event("a", name="t.current")
    def current(event: Event) -> None:
        assert current_event() is event
        raise LookupError

    with pytest.raises(LookupError):
        current(Event(type="a"))
    assert current_event() is None


def test_two_functions_cannot_share_a_task_name() -> None:
    """A second function under one task name is refused, naming both places; the same function may register again."""
    on_event("a", name="h.shared")(takes_event)
    on_event("a", name="h.shared")(takes_event)
    with pytest.raises(InvalidHandler, match=r"two handlers are named 'h.shared', at .*test_on_event.py:\d+ and "):
        on_event("b", name="h.shared")(untyped)

"""The registry of handlers: which handlers match an event type, and the ids of their tasks."""

from __future__ import annotations

import threading
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any
from uuid import UUID

from bridge.errors import InvalidHandler
from bridge.events import Event, compile_pattern
from bridge.handlers.declaration import is_same

#: What to do if an application has no handlers.
IMPORT_ADVICE = (
    "import the modules with @on_event: set imports, or call app.autodiscover_tasks(), which finds modules named "
    "tasks, or those named events with related_name='events'"
)


@dataclass(frozen=True)
class Handler:
    """One registered handler.

    Arguments:
        task_name: Name of its Celery task.
        patterns: Redis globs. The handler gets each event whose type matches at least one of them, once.
        where: Predicate on the event; None accepts all events.
        send_options: Options of the decorator for sending the task; they take precedence over ``bridge_routes``.
        defined_at: File and line of the function.
        module: Name of its module, if the name of the task begins with it; empty if the task has a ``name=``.
        declared: The function, its predicate and its options, to recognise a module that is imported twice.
    """

    task_name: str
    patterns: tuple[str, ...]
    where: Callable[[Event[Any]], bool] | None = None
    send_options: Mapping[str, Any] = field(default_factory=dict)
    defined_at: str = ""
    module: str = field(default="", compare=False)
    declared: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def matches(self, event_type: str) -> bool:
        """Whether one of the patterns matches."""
        return any(compile_pattern(pattern).fullmatch(event_type) for pattern in self.patterns)


class Registry:
    """The handlers of one process, in the order of registration.

    Arguments:
        max_cached_types: Number of event types whose handlers are cached. There are few types; a publisher that keeps
            inventing new ones must not exhaust the memory.
    """

    def __init__(self, max_cached_types: int = 10_000) -> None:
        self._max_cached_types = max_cached_types
        self._lock = threading.Lock()
        self._handlers: dict[str, Handler] = {}
        self._by_type: dict[str, tuple[Handler, ...]] = {}

    def add(self, handler: Handler) -> None:
        """Register *handler*. Registering it again, because its module is imported twice, changes nothing.

        Raises:
            InvalidHandler: Another function has this task name, and Celery would run one of them for the events of
                both. Or the same function has another task name, and each event would run it twice.
        """
        with self._lock:
            first = self._handlers.get(handler.task_name)
            if first is not None:
                _refuse_another(first, handler)
            for other in self._handlers.values():
                _refuse_second_name(other, handler)
            self._handlers[handler.task_name] = handler
            self._by_type.clear()

    def matching(self, event_type: str) -> tuple[Handler, ...]:
        """Return the handlers whose patterns match *event_type*. Their predicates are not evaluated."""
        found = self._by_type.get(event_type)
        if found is None:
            with self._lock:
                found = tuple(handler for handler in self._handlers.values() if handler.matches(event_type))
                if len(self._by_type) >= self._max_cached_types:
                    self._by_type.clear()
                self._by_type[event_type] = found
        return found

    def get(self, task_name: str) -> Handler | None:
        """Return the handler whose Celery task has this name, or None."""
        return self._handlers.get(task_name)

    @property
    def names(self) -> list[str]:
        """The names of the handlers' tasks, in the order of registration."""
        return list(self._handlers)

    @property
    def patterns(self) -> dict[str, tuple[str, ...]]:
        """The patterns of each handler, by the name of its task."""
        return {handler.task_name: handler.patterns for handler in self}

    def __iter__(self) -> typing.Iterator[Handler]:
        return iter(tuple(self._handlers.values()))

    def clear(self) -> None:
        """Remove all handlers; for tests."""
        with self._lock:
            self._handlers.clear()
            self._by_type.clear()


def _refuse_another(first: Handler, handler: Handler) -> None:
    if first.defined_at != handler.defined_at:
        raise InvalidHandler(
            f"two handlers are named {handler.task_name!r}, at {first.defined_at} and {handler.defined_at}; "
            "rename one, or give it a name="
        )
    if not is_same((first.patterns, first.declared), (handler.patterns, handler.declared)):
        raise InvalidHandler(
            f"two handlers are named {handler.task_name!r}, both made at {handler.defined_at}, for "
            f"{', '.join(first.patterns)} and for {', '.join(handler.patterns)}; the second would replace the first. "
            "A loop or a function that makes several handlers must give each a different name="
        )


def _refuse_second_name(other: Handler, handler: Handler) -> None:
    names = {one.module: one.task_name.removeprefix(one.module) for one in (other, handler)}
    if "" in names or len(names) == 1 or len(set(names.values())) == 2 or other.defined_at != handler.defined_at:
        return
    raise InvalidHandler(
        f"the file of {handler.defined_at} is imported as {other.module!r} and as {handler.module!r}, so each event "
        f"would run {other.task_name} and {handler.task_name}; import it under one name"
        + (", and keep handlers out of the program that is started" if "__main__" in names else "")
    )


#: The registry of ``@on_event``. As with ``shared_task``, all Celery applications of the process share it.
registry = Registry()

#: Namespace of the task ids. It must never change: a repeated dispatch must have the same task id.
_TASK_IDS = UUID("2b9b1d1e-64c1-4f0f-8a52-6c5d2d7c9a10").bytes


def task_id_for(group: str, event_id: str, task_name: str, replay: str | None = None) -> str:
    """Return the id of the task that runs *task_name* of *group* for an event. Each replay has a different id."""
    attempt = "" if replay is None else f":{replay}"
    # uuid.uuid5() as defined by RFC 9562, written out: three times as fast.
    text = sha1(_TASK_IDS + f"{group}:{event_id}:{task_name}{attempt}".encode(), usedforsecurity=False).hexdigest()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"


#: The first digit of the fourth group of a UUID: its upper two bits are fixed.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}

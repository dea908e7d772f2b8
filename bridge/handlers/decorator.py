"""``@on_event``: declares the handlers of events, and rejects declarations that cannot work."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from celery import Task
from celery.local import Proxy
from kombu.compression import get_encoder
from kombu.entity import maybe_delivery_mode

from bridge.config import is_pickle
from bridge.errors import InvalidEvent, InvalidHandler, did_you_mean
from bridge.events import Event, check_type, compile_pattern, is_literal
from bridge.handlers.handler import Handler, registry
from bridge.handlers.shared import WHY_NO_PICKLE, handler_class, shared_handler
from bridge.handlers.task import EventTask

#: Options for sending a task message; all other options are attributes of the task.
SEND_OPTIONS = frozenset(
    {
        "queue",
        "exchange",
        "exchange_type",
        "routing_key",
        "priority",
        "delivery_mode",
        "countdown",
        "compression",
        "headers",
    }
)
#: What a worker makes of a message of a task.
_WORKER_CLASSES = ("Request", "Strategy")
_WHY_NO_OTHER = (
    "the bridge's own one ends a task whose process is killed; use the hooks of the task, or Celery's signals"
)
#: Plain attributes of a task: neither methods and properties, nor the attributes that the decorator sets itself.
_TASK_OPTIONS = {
    name
    for name in dir(EventTask)
    if not name.startswith("_") and not hasattr(inspect.getattr_static(EventTask, name), "__get__")
} - {"abstract", "event_model", *_WORKER_CLASSES} | {
    "bind",
    "autoretry_for",
    "dont_autoretry_for",
    "retry_kwargs",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
}


def on_event(
    *patterns: str, where: Callable[[Event[Any]], bool] | None = None, **options: Any
) -> Callable[[Callable[..., Any]], EventTask]:
    """Make a function the handler of events: a Celery task that runs once for each matching event.

    The function takes the event as its only argument (after the task itself with ``bind=True``). If the argument is
    annotated as ``Event[Model]``, with a pydantic model, its payload is an instance of that model; an invalid payload
    becomes a dead letter. The result is an ordinary Celery task and can be called as a plain function.

    As with any Celery task, its base class is the task class of its application (``task_cls``), or ``base=``. What the
    bridge needs is added to it: the handler runs inside ``__call__`` of that class, and has its hooks and attributes,
    but for ``acks_late``, ``reject_on_worker_lost`` and ``track_started``.

    Arguments:
        patterns: Event types, or Redis globs over the whole type such as ``dream.*``.
        where: Predicate on the event. The thread of the subscriber that dispatches all events evaluates it before it
            sends a task: it must be fast, and look at nothing but the event. In particular it must not use the ORM,
            whose connection in that thread nobody closes. What it raises leaves a dead letter.
        options: Any option of a Celery task (``base``, ``bind``, ``autoretry_for``, ``rate_limit``, ...) or for sending
            it (``queue``, ``priority``, ``countdown``, ...).

    Raises:
        InvalidHandler: The declaration cannot work; the text explains what to change.
    """
    _check_patterns(patterns)
    _check_options(options)
    if where is not None and not callable(where):
        raise InvalidHandler(f"@on_event: where={where!r} must be a function of the event")

    def register(function: Callable[..., Any]) -> EventTask:
        if isinstance(function, Task | Proxy):  # Celery's decorators return a proxy of the task
            raise InvalidHandler(
                "@on_event was given a task; remove the other decorator: @on_event makes the task, with all options "
                "of a task, for one or more event types"
            )
        if not inspect.isfunction(inspect.unwrap(function)):
            raise InvalidHandler(f"{function!r} must be a function, whose name becomes the name of its task")
        send_options = {name: options[name] for name in options if name in SEND_OPTIONS}
        task_options = {name: options[name] for name in options if name not in SEND_OPTIONS}
        module = "" if task_options.get("name") else function.__module__
        name = task_options.pop("name", None) or f"{module}.{function.__name__}"
        model = _event_model(function, bound=bool(task_options.get("bind")))
        code = inspect.unwrap(function).__code__
        place, declared = f"{code.co_filename}:{code.co_firstlineno}", (function, where, options)
        registry.add(Handler(name, patterns, where, send_options, place, module, declared))
        return shared_handler(function, name, task_options.pop("base", None), event_model=model, **task_options)

    return register


def check_send_options(options: Mapping[str, Any]) -> None:
    """Raise :class:`InvalidHandler` for values that kombu would reject only when the first event is sent."""
    try:
        if options.get("compression") is not None:
            get_encoder(options["compression"])
        if options.get("delivery_mode") is not None:
            maybe_delivery_mode(options["delivery_mode"])
    except (KeyError, AttributeError) as error:
        raise InvalidHandler(f"compression or delivery_mode: kombu does not know {error}") from error
    if not isinstance(options.get("countdown") or 0, int | float):
        raise InvalidHandler(f"countdown={options['countdown']!r} must be a number of seconds")


def _check_patterns(patterns: tuple[Any, ...]) -> None:
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise InvalidHandler("@on_event needs one or more event types: @on_event('dream.created')")
    for pattern in patterns:
        try:
            compile_pattern(pattern)
            if is_literal(pattern):
                check_type(pattern)
        except (ValueError, InvalidEvent) as error:
            raise InvalidHandler(f"@on_event({pattern!r}) cannot match any event: {error}") from error


def _check_options(options: Mapping[str, Any]) -> None:
    known = SEND_OPTIONS | _TASK_OPTIONS | {"base"}
    for name in options:
        if name in _WORKER_CLASSES:
            raise InvalidHandler(f"@on_event has no option {name!r}: {_WHY_NO_OTHER}")
        if name not in known:
            hint = did_you_mean(name, known, repr) or "it is not an option of a Celery task"
            raise InvalidHandler(f"@on_event has no option {name!r}; {hint}")
    check_send_options(options)
    if is_pickle(options.get("serializer")):
        raise InvalidHandler(f"serializer='pickle' {WHY_NO_PICKLE}")
    if options.get("base") is not None:
        _check_base(options["base"])


def _check_base(base: Any) -> None:
    if not (isinstance(base, type) and issubclass(base, Task)):
        raise InvalidHandler(f"base={base!r} must be a task class: a subclass of celery.Task or of bridge.EventTask")
    handler_class(base)
    for name in _WORKER_CLASSES:
        if getattr(base, name) != getattr(EventTask if issubclass(base, EventTask) else Task, name):
            raise InvalidHandler(f"base={base!r} must not set {name}: {_WHY_NO_OTHER}")


def _event_model(function: Callable[..., Any], *, bound: bool) -> type[Event[Any]]:
    name = getattr(function, "__name__", repr(function))
    if inspect.iscoroutinefunction(function):
        raise InvalidHandler(f"{name} is async, but Celery runs plain functions: call asyncio.run() in one")
    signature = inspect.signature(function)
    try:
        arguments = signature.bind(*(["task", "event"] if bound else ["event"])).arguments
    except TypeError as error:
        wanted = "the task and the event" if bound else "the event as its only argument (or use bind=True)"
        raise InvalidHandler(f"{name}{signature} must take {wanted}") from error
    try:
        annotation = typing.get_type_hints(function).get(list(arguments)[-1], Event)
    except NameError as error:
        raise InvalidHandler(
            f"{name}: {error}; the types in a handler's annotations are needed at run time, so import them"
        ) from error
    if not (isinstance(annotation, type) and issubclass(annotation, Event)):
        raise InvalidHandler(f"{name} gets an Event; annotate it as Event or Event[Model], not {annotation!r}")
    return annotation

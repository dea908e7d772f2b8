"""What changes, or must see, each message that Celery makes: wrappers of its methods, and receivers of its signals.

Tools such as Sentry replace ``Task.apply_async`` and ``Celery.send_task`` and add headers with the time of the call. A
message that is rendered once per route would repeat what they added to it, so Celery has to make each message then.

OpenTelemetry's receivers are an exception: the trace context of the event is a header of its messages in any case.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import celery
from celery import Celery, Task
from celery.signals import after_task_publish, before_task_publish

from bridge.bus import PROPAGATOR
from bridge.handlers import EventTask
from bridge.telemetry import is_opentelemetry

_OF_CELERY = str(Path(celery.__file__).parent)


def interceptors(app: Celery, task: EventTask) -> list[str]:
    """Return the names of what intercepts the messages of *task*."""
    found = [*_overriding(task, "apply_async"), *_overriding(app, "send_task")]
    return [*map(_name_of, found), *map(_name_of, _receivers())]


def state() -> tuple[int, ...]:
    """Return a value that is another one when something begins or ceases to intercept."""
    # Wrappers may compare equal to what they wrap.
    wrapped = id(vars(Task)["apply_async"]), id(vars(Celery)["send_task"])
    return len(before_task_publish.receivers), len(after_task_publish.receivers), *wrapped


def _overriding(instance: Any, method: str) -> Iterator[Any]:
    """Yield what is called instead of Celery's own *method*, or before it: by its class, or by patches of an object."""
    places = [vars(instance), *(vars(one) for one in type(instance).__mro__ if one is not EventTask)]
    for attribute in (names[method] for names in places if method in names):
        # Wrappers copy names and attributes of what they wrap, but a function cannot hide its code.
        own = type(attribute) is FunctionType and attribute.__code__.co_filename.startswith(_OF_CELERY)
        if not own:
            yield attribute


def _receivers() -> Iterator[Any]:
    for signal in (before_task_publish, after_task_publish):
        for (uid, _), reference in signal.receivers or ():
            receiver = reference() if isinstance(reference, weakref.ReferenceType) else reference
            if receiver is not None and uid != PROPAGATOR and not is_opentelemetry(receiver):
                yield receiver


def _name_of(interceptor: Any) -> str:
    wrapper = getattr(interceptor, "_self_wrapper", interceptor)  # of wrapt, which many tools use
    function = getattr(wrapper, "__func__", wrapper)
    module = getattr(function, "__globals__", {}).get("__name__") or type(wrapper).__module__
    return f"{module}.{getattr(function, '__qualname__', type(wrapper).__qualname__)}"

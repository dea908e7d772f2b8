"""Task classes of applications, as users write them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from celery import Task

from bridge import EventTask

#: The application context, as that of Flask: a handler sees it only if ``__call__`` of its task class is called.
CONTEXT: ContextVar[str] = ContextVar("CONTEXT", default="none")


class ContextTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """As the documentation of Flask has it."""

    abstract = True
    max_retries = 7
    rate_limit = "5/m"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = CONTEXT.set("pushed")
        try:
            return self.run(*args, **kwargs)
        finally:
            CONTEXT.reset(token)

    def describe(self) -> str:
        return f"{self.name} of {self.app.main}"


class CallingSuper(ContextTask):
    """As older documentation of Flask has it."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = CONTEXT.set("super")
        try:
            return Task.__call__(self, *args, **kwargs)
        finally:
            CONTEXT.reset(token)


class Both(EventTask, ContextTask):
    """What a user writes who knows the classes of the bridge."""

    abstract = True


class SameNames(Task):  # type: ignore[type-arg]
    """A class that has chosen names which the bridge has, too."""

    abstract = True
    _tracer = "mine"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args)

    def _call(self, event: Any) -> Any:
        self.calls += 1
        assert self._tracer == "mine"
        return self.run(event)


class Meta(type):
    made: list[str] = []

    def __init__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> None:
        super().__init__(name, bases, attributes)
        Meta.made.append(name)


class Metaclassed(Task, metaclass=Meta):  # type: ignore[type-arg]
    abstract = True


#: ``task_cls`` of an application, and the context in which its handlers run.
TASK_CLASSES: dict[str, tuple[Any, str]] = {
    "none": (None, "none"),
    "Celery's own": (Task, "none"),
    "class": (ContextTask, "pushed"),
    "dotted": (f"{__name__}:ContextTask", "pushed"),
    "calling super": (CallingSuper, "super"),
    "an EventTask": (Both, "pushed"),
    "the EventTask": (EventTask, "none"),
    "same names": (SameNames, "none"),
    "metaclass": (Metaclassed, "none"),
}

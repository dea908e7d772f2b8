"""Handlers for tests that inspect task messages and run no tasks. Tasks are global to Celery: define them only once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pydantic import BaseModel, Field

from bridge import Event, EventTask, on_event
from bridge.handlers.handler import Handler, registry


@on_event("*", name="t.all")
def everything(event: Event) -> None: ...


@on_event("dream.created", name="t.exact")
def exact(event: Event) -> None: ...


@on_event("dream.*", "dream.created", name="t.glob")
def glob(event: Event) -> None: ...


@on_event("*", name="t.chosen", where=lambda event: event.payload["yes"])
def chosen(event: Event) -> None: ...


@on_event("billing.*", name="t.plain")
def plain(event: Event) -> None: ...


@on_event("billing.*", name="t.own", queue="own")
def own_queue(event: Event) -> None: ...


@on_event("*", name="t.expiring", expires=600)
def expiring(event: Event) -> None: ...


@on_event("*", name="t.delayed", countdown=600)
def delayed(event: Event) -> None: ...


@on_event("*", name="t.limited", time_limit=30, soft_time_limit=20, ignore_result=True, priority=6, queue="limited")
def limited(event: Event) -> None: ...


@on_event("*", name="t.packed", compression="zlib")
def packed(event: Event) -> None: ...


class Picky(EventTask):
    """A task class of a user: Celery calls it for each message."""

    abstract = True

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
        """Return the name that is shown; raise KeyError for an event without a name."""
        return f"picky {args[0]['payload']['name']}"


@on_event("*", name="t.picky", base=Picky)
def picky(event: Event) -> None: ...


class Order(BaseModel):
    """A payload that has to be validated."""

    order_id: str
    lines: list[str] = Field(min_length=1)
    total: Decimal = Field(gt=0)


@on_event("order.placed", name="t.typed")
def typed(event: Event[Order]) -> None: ...


#: Handlers by task name; each test registers those that it needs.
HANDLERS: dict[str, Handler] = {handler.task_name: handler for handler in registry if handler.task_name[:2] == "t."}

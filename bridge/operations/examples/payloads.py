"""Payloads and the models of the handlers that receive them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, cast

from celery import Celery
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from bridge.errors import BridgeError, InvalidEvent
from bridge.events import Event
from bridge.handlers import EventTask, detail_of, registry
from bridge.operations.examples.schema import NoValue, Path, Sampler

#: Most values that are proposed to a model.
_MOST_TRIES = 200
#: How long values are proposed: validators are user code, and may be slow.
_LONGEST_S = 5.0

#: Models of events by the name of a handler's task.
Models = Mapping[str, type[Event[Any]]]


class NoExample(BridgeError):
    """No valid payload was found for the models of an event type."""


def models_of(app: Celery, event_type: str) -> dict[str, type[Event[Any]]]:
    """Return the models of the handlers of *event_type* that validate its payload, by the names of their tasks."""
    tasks = [cast("EventTask", app.tasks[handler.task_name]) for handler in registry.matching(event_type)]
    return {task.name: task.event_model for task in tasks if task.event_model is not Event}


def misfits(models: Models, event: Event) -> Iterator[tuple[str, str]]:
    """Yield the handlers whose models do not accept *event*, each with the first problem: ``payload.lines: ...``."""
    for handler, model in models.items():
        if _fits_quickly(model, event.payload):
            continue
        try:
            model.from_dict(event.to_dict())
        except InvalidEvent as error:
            yield handler, f"{error.field}: {error.detail}"
        except Exception as error:  # noqa: BLE001  # of a validator, which is user code
            yield handler, detail_of(error)


def _fits_quickly(model: type[Event[Any]], payload: Any) -> bool:
    """Whether *payload* is valid, in a third of the time that the whole event takes; False if that is uncertain."""
    adapter = _payload_adapter(model)
    if adapter is None:
        return False
    try:
        adapter.validate_python(payload)
    except Exception:  # noqa: BLE001  # validators are user code
        return False
    return True


@lru_cache(maxsize=1000)
def _payload_adapter(model: type[Event[Any]]) -> TypeAdapter[Any] | None:
    """Return what validates the payload of ``Event[Payload]``; None for a subclass, which may validate more."""
    if model.__pydantic_generic_metadata__["origin"] is not Event:
        return None
    field = model.model_fields["payload"]
    kind: Any = field.annotation
    for constraint in field.metadata:
        kind = Annotated[kind, constraint]
    return TypeAdapter(kind)


def example_payload(models: Models, event_type: str) -> Any:
    """Return a payload that all *models* accept; it consists of JSON types.

    Raises:
        NoExample: None was found, although one may exist.
    """
    found = [_example(handler, model, event_type) for handler, model in models.items()]
    if len(found) > 1 and all(isinstance(payload, dict) for payload in found):
        # Each consumer may describe only those parts of an event that it uses.
        found.append({name: value for payload in reversed(found) for name, value in payload.items()})
    problems = []
    for payload in found or [{}]:
        problem = next(misfits(models, Event(type=event_type, payload=payload)), None)
        if problem is None:
            return payload
        problems.append(problem)
    handler, problem_text = problems[-1]
    raise NoExample(f"no payload was found that all handlers of {event_type} accept; {handler}: {problem_text}")


def _example(handler: str, model: type[Event[Any]], event_type: str) -> Any:
    late_at_s = time.monotonic() + _LONGEST_S
    try:
        with warnings.catch_warnings(action="ignore"):  # of defaults that JSON cannot hold, and which nobody needs here
            schema = model.model_json_schema()
        payload_schema = {name: value for name, value in schema["properties"]["payload"].items() if name != "default"}
        sampler = Sampler(payload_schema, schema.get("$defs", {}))
        why = "its model contains itself, or needs more than an example can have"
        with suppress(NoValue):
            for _ in range(_MOST_TRIES):
                payload = sampler.value()
                problems = list(_problems(model, event_type, payload))
                if not problems:
                    return payload
                why = problems[0][1]
                rejected = [sampler.reject(place) for place, _ in problems]
                if not any(rejected) or time.monotonic() > late_at_s:
                    break
    except PydanticUserError:
        why = "its model has no JSON schema"
    except Exception as error:  # noqa: BLE001  # a schema may contain, and its making may do, what the user wants
        why = f"its JSON schema cannot be used: {detail_of(error)}"
    advice = "give its model an example, Field(examples=[...]) or json_schema_extra"
    raise NoExample(f"no payload was found that {handler} accepts ({why}); {advice}")


def _problems(model: type[Event[Any]], event_type: str, payload: Any) -> Iterator[tuple[Path, str]]:
    """Yield why *model* does not accept a payload, each with the place."""
    try:
        model.from_dict(Event(type=event_type, payload=payload).to_dict())
    except InvalidEvent as error:
        if not isinstance(error.__cause__, ValidationError):
            yield (), str(error)
            return
        for one in error.__cause__.errors(include_url=False, include_input=False):
            yield _place(payload, one["loc"][1:]), f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
    except Exception as error:  # noqa: BLE001  # of a validator, which is user code
        yield (), detail_of(error)


def _place(value: Any, location: Sequence[Any]) -> Path:
    """Return the path of an error in *value*. Its location also names the models of unions, and what is missing."""
    path: list[Any] = []
    for part in location:
        if part in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
            value = value[part]
            path.append(part)
    return tuple(path)

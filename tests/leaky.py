"""Handlers that reveal sensitive values in every possible way."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Reject
from pydantic import BaseModel, field_validator

from bridge import Event, EventTask, on_event
from tests.app import app

__all__ = ["app"]


def email(event: Event) -> str:
    return str(event.payload["user"]["email"])


class Strict(BaseModel):
    user: dict[str, str]

    @field_validator("user")
    @classmethod
    def _never(cls, user: dict[str, str]) -> dict[str, str]:
        raise ValueError(f"cannot use {user['email']}")


class Numbers(BaseModel):
    user: dict[str, int]


@on_event("leak.raise")
def raises(event: Event) -> None:
    raise ValueError(f"no mail to {email(event)} or {email(event).upper()}")


@on_event("leak.chain")
def chains(event: Event) -> None:
    try:
        raise KeyError(email(event))
    except KeyError as error:
        raise RuntimeError("as intended") from error


@on_event("leak.model")
def models(event: Event[Strict]) -> None: ...


@on_event("leak.inside")
def inside(event: Event) -> None:
    Numbers.model_validate(event.payload)


@on_event("leak.retry", bind=True, max_retries=1, default_retry_delay=0)
def retries(self: EventTask, event: Event) -> None:
    raise self.retry(exc=ValueError(email(event)))


@on_event("leak.auto", autoretry_for=(ValueError,), max_retries=1, default_retry_delay=0)
def retries_by_itself(event: Event) -> None:
    raise ValueError(email(event))


@on_event("leak.reject")
def rejects(event: Event) -> None:
    raise Reject(email(event))


@on_event("leak.return")
def returns(event: Event) -> Any:
    return event.payload


@on_event("leak.where", where=lambda event: bool(int(email(event))))
def chosen(event: Event) -> None: ...

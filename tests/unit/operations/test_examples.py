"""Examples of payloads: valid for the models of handlers, whatever these are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired
from uuid import UUID

import pydantic as p
import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from bridge import Event
from bridge.operations.examples.payloads import NoExample, example_payload, misfits


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 5


class Card(BaseModel):
    kind: Literal["card"] = "card"
    last_four: Annotated[str, Field(pattern=r"^[0-9]{4}$")]


class Transfer(BaseModel):
    kind: Literal["transfer", "wire"]
    iban: Annotated[str, Field(min_length=15)]


class Tree(BaseModel):
    name: str
    children: list[Tree]


class Link(BaseModel):
    name: str
    next: Link | None


class Circle(BaseModel):
    inner: Circle


class Lines(p.RootModel[list[Card]]):
    pass


@dataclass
class Plain:
    size: int
    price: Decimal
    unit: str = "kg"


class Typed(TypedDict):
    size: int
    unit: NotRequired[str]


class Point(NamedTuple):
    x: int
    name: str


class Shown(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"size": 12, "unit": "kg"}]})
    size: int
    unit: str


class WithExamples(BaseModel):
    size: int = Field(examples=["not a number", 7])
    unit: str | None = Field(default=None, examples=["kg"])


class Renamed(BaseModel):
    model_config = ConfigDict(alias_generator=str.upper, extra="forbid")
    size: int
    unit: str = Field(alias="theUnit")


class Checked(BaseModel):
    """A model that checks what its schema does not say."""

    size: int
    unit: str
    note: str | None = None

    @p.field_validator("size")
    @classmethod
    def even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("odd")
        return value

    @p.model_validator(mode="after")
    def noted(self) -> Checked:
        if self.note is None:
            raise ValueError("without a note")
        return self


class Defaulted(BaseModel):
    size: int
    when: datetime = Field(default=object())  # not JSON


class Foreign(BaseModel):
    model_config = ConfigDict(json_schema_extra={"$ref": "#/components/schemas/Elsewhere"})
    size: int


class Broken(BaseModel):
    size: int = Field(json_schema_extra={"examples": None})


A = Annotated
KINDS: dict[str, Any] = {
    "decimal": A[Decimal, Field(gt=0, max_digits=6, decimal_places=2)],
    "times": tuple[datetime, date, time, timedelta],
    "future": tuple[p.FutureDate, p.PastDate, p.FutureDatetime, p.PastDatetime],
    "zones": tuple[p.AwareDatetime, p.NaiveDatetime],
    "uuids": tuple[UUID, p.UUID1, p.UUID4, p.UUID5],
    "enums": tuple[Colour, Level, Literal["x", 3], Literal["only"]],
    "pattern": A[str, Field(pattern=r"^[A-Z]{3}-\d{2,4}$", min_length=8)],
    "phone": A[str, Field(pattern=r"^(?:\+|00)[1-9]\d+(?:[ -]\d{2,}){2}$")],
    "negated": A[str, Field(pattern=r"[^a-z]\w\W")],
    "upper": A[str, p.StringConstraints(min_length=10, max_length=12, to_upper=True)],
    "bounds": tuple[p.conint(ge=1000), p.conint(multiple_of=5, gt=3), p.confloat(gt=0, lt=1), p.confloat(ge=-9, le=-8)],
    "discriminated": A[Transfer | Card, Field(discriminator="kind")],
    "union": Card | int | None,
    "lists": A[list[Card], Field(min_length=3, max_length=4)],
    "sets": tuple[A[set[str], Field(min_length=3)], A[frozenset[UUID], Field(min_length=2)], tuple[int, ...]],
    "dicts": tuple[dict[str, int], A[dict[UUID, Card], Field(min_length=2)], dict[str, Any]],
    "keys": dict[A[str, Field(pattern="^k[0-9]$")], list[tuple[date, Card]]],
    "addresses": tuple[p.HttpUrl, p.PostgresDsn, p.RedisDsn, p.AmqpDsn, p.IPvAnyAddress],
    "encoded": tuple[bytes, p.Base64Bytes, p.Json[list[int]], p.SecretStr, p.ByteSize, bool],
    "recursive": tuple[Tree, Link],
    "root": Lines,
    "dataclass": Plain,
    "typed dict": Typed,
    "named tuple": Point,
    "aliases": Renamed,
    "validators": Checked,
    "defaults": Defaulted,
    "anything": tuple[Any, p.JsonValue],
}


def fitting(kind: Any) -> Any:
    model = {"handler": Event[kind]}
    payload = example_payload(model, "a.b")
    assert payload == json.loads(json.dumps(payload))
    assert list(misfits(model, Event(type="a.b", payload=payload))) == []
    return payload


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_valid(kind: str) -> None:
    """The payload, and a payload with a field of this kind, are valid for the model that a handler has."""
    fitting(KINDS[kind])
    fitting(p.create_model("Payload", field=(KINDS[kind], ...)))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Shown, {"size": 12, "unit": "kg"}),
        (WithExamples, {"size": 7, "unit": "kg"}),
        (Plain, {"size": 1, "price": 1}),
        (Renamed, {"SIZE": 1, "theUnit": "text"}),
        (Card, {"kind": "card", "last_four": "0000"}),
        (Tree, {"name": "text", "children": []}),
        (Link, {"name": "text", "next": None}),
        (dict[str, int], {"key": 1}),
        (Any, "text"),
    ],
)
def test_an_example_is_what_a_reader_expects(kind: Any, payload: Any) -> None:
    """Examples in the model come first, as far as they are valid; otherwise an example has what is required."""
    assert fitting(kind) == payload


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Circle, "contains itself"),
        (A[str, Field(min_length=10**7)], "needs more than"),
        (Callable[[], int], "no JSON schema"),
        (A[Decimal, p.Strict()], "instance of Decimal"),
        (A[str, p.AfterValidator(lambda _: 1 / 0)], "ZeroDivisionError"),
        (A[str, Field(pattern=r"^(\w+\s?)*\b!$")], "match pattern"),  # the module re would search forever
        (Foreign, "cannot be used: KeyError"),
        (Broken, "cannot be used: TypeError"),
    ],
)
def test_a_model_without_an_example(kind: Any, why: str) -> None:
    """If no example is found, the error says why, and what to add to the model."""
    with pytest.raises(NoExample, match=why) as found:
        example_payload({"handler": Event[kind]}, "a.b")
    assert "Field(examples=[...])" in str(found.value)


def test_slow_validators(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for an example ends after a while, since a validator may take as long as it wants."""
    clock = iter(range(100))
    monkeypatch.setattr("bridge.operations.examples.payloads.time.monotonic", lambda: next(clock))
    asked: list[int] = []

    def slow(value: int) -> int:
        asked.append(value)
        raise ValueError("no")

    with pytest.raises(NoExample, match="no"):
        example_payload({"handler": Event[A[Literal[tuple(range(40))], p.AfterValidator(slow)]]}, "a.b")
    assert len(asked) == 6


class Price(BaseModel):
    price: Decimal


class Size(BaseModel):
    size: int


class OnlySize(Size):
    model_config = ConfigDict(extra="forbid")


def test_an_example_for_several_handlers() -> None:
    """All handlers of a type accept the example; if that is impossible, the error names one that does not."""
    models: dict[str, Any] = {"one": Event[Price], "two": Event[Size]}
    assert example_payload(models, "a.b") == {"price": 1, "size": 1}
    assert example_payload({}, "a.b") == {}
    with pytest.raises(NoExample, match=r"all handlers of a\.b accept; two: payload\.price: Extra inputs"):
        example_payload(models | {"two": Event[OnlySize]}, "a.b")

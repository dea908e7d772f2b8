"""Numbers for a JSON schema."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

#: Proposed first, as far as the bounds allow it.
_USUAL = (Fraction(1), Fraction(3, 2), Fraction(2), Fraction(0), Fraction(-1))


def numbers(schema: Mapping[str, Any]) -> list[int | float]:
    """Return numbers within the bounds of *schema*; empty if it has none that is simple."""
    whole = schema.get("type") == "integer"
    step = _exact(schema["multipleOf"]) if "multipleOf" in schema else Fraction(1) if whole else None
    found = {number: None for number in (*_USUAL, *_at_bounds(schema, step)) if _fits(number, schema, step)}
    return [int(number) if number.denominator == 1 else float(number) for number in found]


def _at_bounds(schema: Mapping[str, Any], step: Fraction | None) -> Iterator[Fraction]:
    low = max((_exact(schema[name]) for name in ("minimum", "exclusiveMinimum") if name in schema), default=None)
    high = min((_exact(schema[name]) for name in ("maximum", "exclusiveMaximum") if name in schema), default=None)
    if step is not None:
        yield step
        if low is not None:
            first = math.ceil(low / step) * step
            yield from (first, first + step)
        if high is not None:
            last = math.floor(high / step) * step
            yield from (last, last - step)
        return
    if low is not None and high is not None:
        yield (low + high) / 2
    if low is not None:
        yield from (low, low + 1)
    if high is not None:
        yield from (high, high - 1)


def _fits(number: Fraction, schema: Mapping[str, Any], step: Fraction | None) -> bool:
    return (
        (step is None or number % step == 0)
        and number >= schema.get("minimum", number)
        and number <= schema.get("maximum", number)
        and ("exclusiveMinimum" not in schema or number > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or number < schema["exclusiveMaximum"])
    )


def _exact(number: float) -> Fraction:
    """Return a number of JSON exactly as it is written: 0.1 is a tenth."""
    return Fraction(str(number))

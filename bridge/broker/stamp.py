"""Bytes that are made once and differ from use to use only in some places, which are filled in."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Self
from uuid import uuid4


class Stamp:
    """A template of bytes. Make one with :meth:`from_example`."""

    __slots__ = ("_choose", "_template")

    def __init__(self, template: bytes, choose: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> None:
        #: With a ``%b`` in each place.
        self._template = template
        #: Returns the value of each place, given one for each argument of the example.
        self._choose = choose

    @classmethod
    def from_example(cls, make: Callable[..., bytes], count: int) -> Self:
        """Return the stamp of what *make* returns.

        Arguments:
            make: It is called with random texts. Each of them, as it is, marks one place of the result or several.
            count: How many arguments it takes; at least two.
        """
        marks = [uuid4().hex for _ in range(count)]  # texts that nothing else contains
        places = re.compile("|".join(marks).encode())
        example = make(*marks).replace(b"%", b"%%")
        order = [marks.index(mark.decode()) for mark in places.findall(example)]
        return cls(places.sub(b"%b", example), itemgetter(*order))

    def fill(self, *values: bytes) -> bytes:
        """Return the bytes, given a value for each argument of the example."""
        return self._template % self._choose(values)

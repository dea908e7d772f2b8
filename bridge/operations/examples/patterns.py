"""Texts for a regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

#: Repetitions of a part that may be repeated without a limit, beyond those that it needs.
_MORE = (0, 1, 3, 7, 15, 31)
#: Longest text that is made.
_LONGEST = 2000
#: What a character class is searched for, the most readable first.
_CHARS = "xabcdefghijklmnopqrstuvwyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@ +,;#%&*!?=()[]{}<>|~^$'\"\\\t\n"
_CATEGORIES = {"DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W"}


def matching(pattern: str) -> Iterator[str]:
    """Yield texts that a regular expression probably finds; none if it is one of those for which that is hard.

    Whether it does find them is for the model to check: its engine takes linear time, and that of :mod:`re` may take
    forever. The parser is the one of :mod:`re`, which is not a public module: if it is missing, nothing is found.
    """
    with suppress(re.error, ImportError, AttributeError, RecursionError, _Hard):
        parts = list(import_module("re._parser").parse(pattern))
        texts: list[str] = []
        for more in _MORE:
            text = _text(parts, more)
            if text not in texts:
                texts.append(text)
                yield text


class _Hard(Exception):
    """A part of an expression, such as a condition, that no simple text matches for certain."""


def _text(parts: Iterable[tuple[Any, Any]], more: int) -> str:
    text = "".join(_part(str(kind), about, more) for kind, about in parts)
    if len(text) > _LONGEST:
        raise _Hard
    return text


def _part(kind: str, about: Any, more: int) -> str:
    match kind:
        case "LITERAL":
            return chr(about)
        case "NOT_LITERAL":
            return _char([("NEGATE", None), ("LITERAL", about)])
        case "ANY":
            return _CHARS[0]
        case "IN":
            return _char(about)
        case "SUBPATTERN":
            return _text(about[-1], more)
        case "BRANCH":
            return _text(about[1][0], more)
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, parts = about
            if least > _LONGEST:
                raise _Hard
            times: int = min(least + more, int(most))
            return _text(parts, more) * times
        case "AT" | "ASSERT" | "ASSERT_NOT":  # they have no width, and may not hold
            return ""
    raise _Hard


def _char(members: Iterable[tuple[Any, Any]]) -> str:
    """Return a character of a class."""
    rows = [("RANGE", (about, about)) if str(kind) == "LITERAL" else (str(kind), about) for kind, about in members]
    negated = ("NEGATE", None) in rows
    tests = [row for row in rows if row[0] != "NEGATE"]
    starts = "".join(chr(about[0]) for kind, about in tests if kind == "RANGE")
    for char in _CHARS + starts:
        if any(_is_member(char, *test) for test in tests) != negated:
            return char
    raise _Hard


def _is_member(char: str, kind: str, about: Any) -> bool:
    if kind == "RANGE":
        return ord(char) in range(about[0], about[1] + 1)
    name = str(about).removeprefix("CATEGORY_")
    if name not in _CATEGORIES:
        raise _Hard
    return re.fullmatch(_CATEGORIES[name], char) is not None

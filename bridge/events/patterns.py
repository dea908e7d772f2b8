"""Patterns for event types: Redis globs, in the syntax of PSUBSCRIBE, matched against the whole type.

``*`` is any text, dots included: ``dream.*`` also matches ``dream.image.rendered``. ``?`` is one character,
``[a-c]`` one of a set, ``[^a]`` one outside it, and a backslash quotes the next character. Patterns are
case-sensitive.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

#: With one of these a glob means something else than its own text.
_GLOB_START = frozenset("*?[\\")
_GLOB_SPECIAL = re.compile(r"([\\*?\[\]^])")
#: A part of a glob: an escaped character, a set, or anything else.
_GLOB_PART = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|.", re.DOTALL)
_CHARS = "xabcdefghijklmnopqrstuvwyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."


def escape_glob(literal: str) -> str:
    """Return a Redis glob that matches exactly *literal*."""
    return _GLOB_SPECIAL.sub(r"\\\1", literal)


def is_literal(pattern: str) -> bool:
    """Whether *pattern* is no glob: it matches itself only. A ``]`` or ``^`` outside a set stands for itself."""
    return _GLOB_START.isdisjoint(pattern)


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return *pattern* as a regular expression; use its ``fullmatch``.

    Raises:
        ValueError: The pattern is empty, or a set is not closed. Redis would close it at the end, but it is a mistake.
    """
    if not pattern:
        raise ValueError("an empty pattern matches no event")
    runs: list[str] = []  # the expression before each star
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            runs.append("".join(parts))
            parts = []
        elif char == "?":
            parts.append(".")
        elif char == "[":
            part, position = _set(pattern, position)
            parts.append(part)
        else:
            if char == "\\" and position < len(pattern):
                char = pattern[position]
                position += 1
            parts.append(re.escape(char))
    if not runs:
        return re.compile("".join(parts), re.DOTALL)
    # Text between two stars is matched where it first occurs, without backtracking: no other position is better.
    middle = "".join(f"(?>.*?{run})" for run in runs[1:] if run)
    return re.compile(f"{runs[0]}{middle}.*{''.join(parts)}", re.DOTALL)


def _set(pattern: str, position: int) -> tuple[str, int]:
    negated = pattern[position : position + 1] == "^"
    position += negated
    members: list[str] = []
    while position < len(pattern) and pattern[position] != "]":
        if pattern[position] == "\\" and position + 1 < len(pattern):
            position += 1
            members.append(re.escape(pattern[position]))
            position += 1
        elif pattern[position + 1 : position + 2] == "-" and position + 2 < len(pattern):
            low, high = sorted((pattern[position], pattern[position + 2]))
            members.append(f"{re.escape(low)}-{re.escape(high)}")
            position += 3
        else:
            members.append(re.escape(pattern[position]))
            position += 1
    if position >= len(pattern):
        raise ValueError(f"pattern {pattern!r}: the set after '[' is not closed with ']'")
    if not members:
        return ("." if negated else r"(?!)"), position + 1
    return f"[{'^' if negated else ''}{''.join(members)}]", position + 1


def _compilable(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        compile_pattern(pattern)
    return patterns


#: The type of a setting that holds patterns.
Patterns = Annotated[list[str], AfterValidator(_compilable)]


def example_of(pattern: str) -> str:
    """Return an event type that a glob matches and that other patterns hardly match by accident."""
    text = ""
    for part in _GLOB_PART.findall(pattern):
        if part in ("*", "?"):
            text += "x"
        elif part[0] == "[":
            fits = compile_pattern(part).fullmatch
            text += next((char for char in _CHARS if fits(char)), "x")
        else:
            text += part[-1]
    return text

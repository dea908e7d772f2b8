"""Redaction: the sensitive parts of events, which logs, monitors, commands and dead letters show as ``[redacted]``.

The setting ``redact_paths`` names them: ``payload.user.email``, ``payload.*.password``, ``metadata.token``. A ``*`` is
any name on one level, and a path applies to each item of a list. Handlers, event keys and the journal get the whole
event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

from bridge.events.event import Event

REDACTED = "[redacted]"
#: These identify an event and are part of keys, channels and log lines, so they cannot be redacted.
_SHOWN_FIELDS = frozenset({"id", "type", "timestamp", "source", "correlationId", "eventId", "eventType"})
#: Shortest part of a sensitive text that is found where an error quotes it. A shorter text is found as a whole word.
_PIECE = 8
#: Most sensitive characters of one event that are searched for in a text. With more, the whole text is redacted.
_MOST_CHARS = 200_000


class Redaction:
    """The sensitive paths of one bus; false if there are no such paths.

    Arguments:
        paths: As in ``bridge_redact_paths``.

    Raises:
        ValueError: A path is invalid.
    """

    def __init__(self, paths: Sequence[str] = ()) -> None:
        #: Name or ``*`` to the tree below it; None: everything below is sensitive.
        self._tree: dict[str, Any] = {}
        for path in paths:
            self._add(_parsed(path))

    def __bool__(self) -> bool:
        return bool(self._tree)

    def _add(self, names: Sequence[str]) -> None:
        node = self._tree
        for name in names[:-1]:
            below = node.setdefault(name, {})
            if below is None:
                return
            node = below
        node[names[-1]] = None

    def fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return an event, given as plain JSON types, with its sensitive values redacted."""
        return _walked(fields, [self._tree], []) if self else fields

    def event(self, event: Event) -> Event:
        """Return *event* with its sensitive values redacted."""
        return Event.from_dict(self.fields(event.to_dict())) if self else event

    def values(self, fields: dict[str, Any]) -> list[Any]:
        """Return the sensitive values of an event, given as plain JSON types."""
        found: list[Any] = []
        if self:
            _walked(fields, [self._tree], found)
        return found

    def text(self, text: str, values: Sequence[Any]) -> str:
        """Return *text*, such as an error, with all quotes of the sensitive *values* of an event redacted."""
        return _without(text, list(_texts(values))) if values else text


#: For a bus without sensitive paths.
NO_REDACTION = Redaction()


@lru_cache(maxsize=100)
def redaction_of(paths: tuple[str, ...]) -> Redaction:
    """Return the redaction of these paths; each is built once."""
    return Redaction(paths)


def _parsed(path: str) -> list[str]:
    names = path.split(".")
    if not all(names):
        raise ValueError(f"{path!r} is not a path: names joined by dots, * for any name, as in payload.*.password")
    if names[0] == "*" or names[0] in _SHOWN_FIELDS:
        raise ValueError(f"{path!r}: begin with payload, metadata or a custom field; other fields cannot be redacted")
    return [*names, "*"] if names == ["metadata"] else names  # so that metadata stays an object


def _walked(value: Any, nodes: Sequence[dict[str, Any]], found: list[Any]) -> Any:
    """Return *value*, to which the *nodes* of the tree apply, redacted; add its sensitive values to *found*."""
    if isinstance(value, dict):
        return {
            name: _shown(item, [node[key] for node in nodes for key in (name, "*") if key in node], found)
            for name, item in value.items()
        }
    if isinstance(value, list):
        # A path to a list applies to each item, and an item also counts as one level.
        below = [*nodes, *(node["*"] for node in nodes if "*" in node)]
        return [_shown(item, below, found) for item in value]
    return value


def _shown(value: Any, nodes: Sequence[dict[str, Any] | None], found: list[Any]) -> Any:
    if None in nodes:
        found.append(value)
        return REDACTED
    return _walked(value, [node for node in nodes if node is not None], found) if nodes else value


def _texts(values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, dict):
            yield from value  # names are sensitive too: one may be an e-mail address
            yield from _texts(list(value.values()))
        elif isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, str):
            yield value
            if len(value) < _PIECE:
                yield from {repr(value)[1:-1], json.dumps(value)[1:-1]}
        elif value is not None and not isinstance(value, bool):  # a boolean reveals little, and occurs in many texts
            yield str(value)


def _without(text: str, secrets: Sequence[str]) -> str:
    if sum(map(len, secrets)) > _MOST_CHARS:
        return REDACTED
    lower = text.lower()
    if len(lower) != len(text):
        lower = text  # then the search is case-sensitive
    hidden = bytearray(len(text))
    pieces: set[str] = set()
    for secret in {one.lower() for one in secrets} | set(secrets):
        if len(secret) < _PIECE:
            _hide_word(lower, secret, hidden)
        else:
            pieces.update(secret[at : at + _PIECE] for at in range(len(secret) - _PIECE + 1))
    for at in range(len(lower) - _PIECE + 1):
        if lower[at : at + _PIECE] in pieces:
            hidden[at : at + _PIECE] = b"\1" * _PIECE
    runs = groupby(zip(text, hidden, strict=True), key=itemgetter(1))
    return "".join(REDACTED if is_hidden else "".join(character for character, _ in run) for is_hidden, run in runs)


def _hide_word(text: str, word: str, hidden: bytearray) -> None:
    at = text.find(word) if word else -1
    while at >= 0:
        end = at + len(word)
        inside = (at > 0 and _joins(text[at - 1], word[0])) or (end < len(text) and _joins(word[-1], text[end]))
        if not inside:
            hidden[at:end] = b"\1" * len(word)
        at = text.find(word, at + 1)


def _joins(left: str, right: str) -> bool:
    return left.isalnum() and right.isalnum()

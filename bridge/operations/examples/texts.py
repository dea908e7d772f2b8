"""Texts for a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from bridge.operations.examples.patterns import matching

#: Longest text that is made.
_LONGEST = 2000
_WORDS = ("text", "TEXT", "1")
_DATES = ("2026-01-31", "2099-12-31")
#: Values of the formats of JSON Schema and pydantic; the first one is proposed first.
_BY_FORMAT: Mapping[str, tuple[str, ...]] = {
    "date-time": ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00", "2099-12-31T12:00:00Z", "2099-12-31T12:00:00"),
    "date": _DATES,
    "time": ("12:00:00", "12:00:00Z"),
    "duration": ("PT1H", "P1D"),
    "email": ("ada@example.com", "bob@example.com"),
    "name-email": ("Ada <ada@example.com>",),
    "uri": ("https://example.com/", "redis://localhost/0", "amqp://localhost//", "postgresql://localhost/shop"),
    "multi-host-uri": ("postgresql://localhost/shop", "mongodb://localhost/shop"),
    "ipv4": ("192.0.2.1", "192.0.2.2"),
    "ipv6": ("2001:db8::1", "2001:db8::2"),
    "ipvanyaddress": ("192.0.2.1", "2001:db8::1"),
    "ipv4network": ("192.0.2.0/24",),
    "ipv6network": ("2001:db8::/32",),
    "ipvanynetwork": ("192.0.2.0/24",),
    "ipv4interface": ("192.0.2.1/24",),
    "ipv6interface": ("2001:db8::1/32",),
    "ipvanyinterface": ("192.0.2.1/24",),
    "base64": ("dGV4dA==",),
    "base64url": ("dGV4dA==",),
    "file-path": ("/etc/hosts",),
    "directory-path": ("/tmp",),  # noqa: S108  # a path to print
    "regex": (".*",),
    "phone": ("+441632960961",),
    "color": ("red",),
}


def texts(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield texts of the length, of the format and with the pattern that *schema* wants, as far as they are simple."""
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", _LONGEST)
    kind = schema.get("format", "")
    usual = _uuids(kind) if kind.startswith("uuid") else _BY_FORMAT.get(kind, ())
    if pattern := schema.get("pattern"):
        found = chain(matching(pattern), usual, _WORDS)
    else:
        found = chain(usual, (_fitted(word, shortest, longest) for word in _WORDS if shortest <= _LONGEST), _DATES)
    yield from (text for text in found if shortest <= len(text) <= longest)


def json_text(value: Any) -> str:
    """Return the text of a field that holds JSON."""
    return json.dumps(value)


def _fitted(word: str, shortest: int, longest: int) -> str:
    return (word * (shortest // len(word) + 1))[: max(shortest, min(len(word), longest))]


def _uuids(kind: str) -> tuple[str, ...]:
    """Return UUIDs of a version: ``uuid4``; of version 4 without one."""
    version = kind.removeprefix("uuid") or "4"
    return tuple(f"3f2a7c1e-9d0b-{version}c55-8a43-0c6f4b1f2a7{last}" for last in range(3))

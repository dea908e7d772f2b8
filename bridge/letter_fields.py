"""How the fields of a dead letter are stored: bounded texts, and whatever another version of the bridge wrote."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

#: Bytes of a text that are kept. The end of a traceback tells most, the beginning of everything else.
_TEXT_BYTES = 1000
_TRACEBACK_BYTES = 2048


def written(letter: Mapping[str, Any]) -> list[Any]:
    """Return fields and values of a letter as they are stored, with the time."""
    stored = dict(letter) | {"at_ms": time.time_ns() // 1_000_000}
    stored |= {name: _text(value) for name, value in stored.items() if isinstance(value, str)}
    stored["traceback"] = _encodable(letter["traceback"])[-_TRACEBACK_BYTES:].decode(errors="ignore")
    return [part for pair in stored.items() for part in pair]


def read(stored: Mapping[bytes, bytes], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a letter by field.

    Arguments:
        kinds: Field to the name of its type. What is stored may have other fields, or fewer.
    """
    values: dict[str, Any] = dict.fromkeys(("reason", "detail", "origin"), "") | {"raw": stored.get(b"raw", b"")}
    for name, value in stored.items():
        kind = kinds.get(name.decode(errors="replace"))
        if kind == "str":
            values[name.decode()] = value.decode(errors="replace")
        elif kind == "int":
            values[name.decode()] = int(value) if value.isdigit() else 0
    return values


def _text(text: str) -> str:
    return _encodable(text)[:_TEXT_BYTES].decode(errors="ignore")


def _encodable(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # half a surrogate pair has no UTF-8

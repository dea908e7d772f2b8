"""JSON on the wire: the only encoder, the only decoder, and the limits that both enforce.

Parsers disagree about the edge cases of JSON: some turn ``2**70`` into a float, some accept ``NaN``, some crash on deep
nesting. JSON that is accepted here means the same in every language. All other JSON is rejected with a reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from bridge.errors import InvalidEvent

#: Most levels of objects and arrays; the event itself is the first. Far more than real events have, and far fewer than
#: would overflow the stack of any known parser.
MAX_DEPTH = 64
_UNDERSCORE, _BACKSLASH, _BRACKET = b"_\\["

#: JavaScript writes whole numbers below this one in digits, and larger ones with an exponent, as floats.
MAX_INT = 10**21
_MAX_DIGITS = len(f"-{MAX_INT}")

#: Celery's JSON encodes datetimes and other types as objects with exactly these names. A worker discards a message with
#: an unknown one, and a known one would reach the handler as another type.
_CELERY_NAMES = {"__type__", "__value__"}

_CONTAINERS = (dict, list)
#: Half a surrogate pair in decoded text: the decoder has joined the whole ones.
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def jsonable(value: Any, field: str, depth: int = 2) -> Any:
    """Return *value* as plain JSON types; models, datetimes, UUIDs, Decimals and enums are converted.

    Arguments:
        value: The value to send.
        field: Path of the value, for the error text.
        depth: Level of the value when it is a container; a field of an event is at level 2.

    Raises:
        InvalidEvent: A part of it is not JSON, or exceeds a limit; ``field`` is the path of that part.
    """
    if isinstance(value, str):
        return _checked_text(value, field)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _checked_int(value, field)
    if isinstance(value, float):
        return _checked_float(value, field)
    if isinstance(value, BaseModel):
        value = _converted(lambda: value.model_dump(mode="python", by_alias=True), value, field)
    if isinstance(value, Mapping):
        _check_depth(depth, field)
        plain = {
            _checked_name(name, field): jsonable(item, f"{field}.{name}", depth + 1) for name, item in value.items()
        }
        _check_names(plain, field)
        return plain
    if isinstance(value, list | tuple | set | frozenset):
        _check_depth(depth, field)
        return [jsonable(item, f"{field}[{index}]", depth + 1) for index, item in enumerate(value)]
    return jsonable(_converted(lambda: to_jsonable_python(value), value, field), field, depth)


def _converted(convert: Any, value: Any, field: str) -> Any:
    try:
        return convert()
    except (ValueError, RecursionError) as error:  # no JSON form, no UTF-8, or an object that contains itself
        raise InvalidEvent("json", field, f"{type(value).__name__} has no JSON form; convert it first") from error


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """Encode plain JSON types as compact UTF-8.

    Raises:
        InvalidEvent: A string has half a surrogate pair, which UTF-8 cannot encode, or a number is not finite.
    """
    try:
        return (_sorting_encoder if sort_keys else _encoder).encode(value).encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent("surrogate", "", "a string contains half a surrogate pair") from error
    except ValueError as error:
        raise InvalidEvent("non_finite", "", "NaN and infinities are not JSON") from error


def loads(data: bytes, max_bytes: int) -> Any:
    """Decode one JSON text from the wire. Of duplicate names, the last one wins.

    Arguments:
        data: The bytes as received.
        max_bytes: Largest size that is parsed.

    Raises:
        InvalidEvent: It is not JSON that means the same to every reader; ``reason`` names the problem.
    """
    if len(data) > max_bytes:
        raise InvalidEvent("size", "", f"{len(data)} bytes, the limit is {max_bytes} (bridge_max_event_bytes)")
    if not data or data.isspace():
        raise InvalidEvent("empty", "", "no content")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent("encoding", "", f"not UTF-8: {error.reason} at byte {error.start}") from error
    if text[0] == "\ufeff":
        raise InvalidEvent("encoding", "", "starts with a byte order mark")
    value = _parsed(text)
    if is_suspicious(data):
        check_containers(value)
    if b"\\" in data and b"\\ud" in data.lower():  # an escape that may be half a pair
        dumps(value)  # after the check of the depth, since very deep values cannot be encoded
    return value


def repaired(data: bytes) -> Any:
    """Decode JSON that :func:`loads` rejects for half a surrogate pair only, with U+FFFD in its place.

    JavaScript cuts text between the halves of a pair: half an emoji must not cost the whole event.
    """
    text = _encoder.encode(_parsed(data.decode()))
    return _parsed(_HALF_PAIR.sub("\ufffd", text))


def _parsed(text: str) -> Any:
    try:
        if text[0] == "{":
            value, end = _decoder.raw_decode(text)
            if end == len(text):
                return value
        return _decoder.decode(text)  # white space around it, or an error that deserves a message
    except RecursionError as error:
        raise InvalidEvent("depth", "", f"nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise InvalidEvent("json", "", f"not JSON: {error}") from error


def is_suspicious(data: bytes) -> bool:
    """Return whether :func:`check_containers` has to walk through this JSON; only few messages cost that much."""
    # The number of brackets limits the depth, and names may be escaped. To look for a single byte is ten times faster,
    # and most events have none of them.
    if (_UNDERSCORE in data and b"__type__" in data) or (_BACKSLASH in data and b"\\u00" in data):
        return True
    return data.count(b"{") + (data.count(b"[") if _BRACKET in data else 0) > MAX_DEPTH


def check_containers(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Raise :class:`InvalidEvent` if *value* has more than *max_depth* levels, or an object that Celery converts."""
    level, depth = [value] if isinstance(value, _CONTAINERS) else [], 0
    while level:
        depth += 1
        _check_depth(depth, "", max_depth)
        for item in level:
            if isinstance(item, dict):
                _check_names(item, "")
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for child in chain.from_iterable(children) if isinstance(child, _CONTAINERS)]


def _check_depth(depth: int, field: str, max_depth: int = MAX_DEPTH) -> None:
    if depth > max_depth:
        raise InvalidEvent("depth", field[:200], f"nested deeper than {max_depth} levels")


def _check_names(fields: dict[str, Any], field: str) -> None:
    if fields.keys() == _CELERY_NAMES:
        raise InvalidEvent("reserved", field, "Celery would convert an object of just __type__ and __value__")


def _checked_int(value: int, field: str) -> int:
    if not -MAX_INT <= value <= MAX_INT:
        raise InvalidEvent("integer_range", field, "an integer beyond 1e21; send it as a string")
    return int(value)


def _checked_float(value: float, field: str) -> float:
    if not math.isfinite(value):
        raise InvalidEvent("non_finite", field, f"{value} is not JSON; send null or a string")
    return float(value)


def _checked_text(value: str, field: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent("surrogate", field, "contains half a surrogate pair") from error
    return str.__str__(value)


def _checked_name(name: Any, field: str) -> str:
    if not isinstance(name, str):
        raise InvalidEvent("json", field, f"object names are strings, {name!r} is {type(name).__name__}")
    return _checked_text(name, field)


def _parse_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:  # int() of thousands of digits is slow, or raises a bare ValueError
        raise InvalidEvent("integer_range", "", f"an integer of {len(text)} digits is beyond 1e21; send it as a string")
    return _checked_int(int(text), "")


def _parse_float(text: str) -> float:
    return _checked_float(float(text), "")


def _refuse_constant(text: str) -> Any:
    raise InvalidEvent("non_finite", "", f"{text} is not JSON")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_sorting_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
_decoder: Any = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant)

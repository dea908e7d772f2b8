"""Signed events: whoever has a key sees whether another who has it wrote an event, byte for byte.

A signature is the last field of the event's JSON, ``"signature":"<key id>:<64 hex digits>"``: the HMAC-SHA256 over the
object without that field. Other programs sign and verify too: docs/signing.md has the format, with examples to test
against.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SecretStr

from bridge.errors import InvalidEvent
from bridge.events.event import Event
from bridge.events.validation import SIGNATURE, is_plain

#: How far the clock of a publisher may be ahead of ours.
CLOCK_SKEW_S = 300
#: A secret that is shorter can be guessed faster than HMAC-SHA256 can be broken.
_MIN_SECRET_BYTES = 32
_MAX_KEY_ID = 64
_KEY_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{_MAX_KEY_ID}}}")
_START = b',"signature":"'
#: From there to the end, with no white space, so that there is one way to write it.
_FIELD = re.compile(rb'%b(%b):([0-9a-f]{64})"\}' % (_START, _KEY_ID.pattern.encode()))
_GIVEN = re.compile(rf"{_KEY_ID.pattern}:[0-9a-f]{{64}}")
_MAX_FIELD_BYTES = len(_START) + _MAX_KEY_ID + len(':"}') + 64


class Keyring:
    """Signs with the first of some keys and verifies with any, so that a new one can come before the old one goes.

    Arguments:
        keys: Key id to secret, as ``signing_keys`` has them.
        prefix: Channel prefix of the bus. It is signed too: an event of one bus means nothing on another.
    """

    def __init__(self, keys: Mapping[str, SecretStr], prefix: str) -> None:
        self._keys = {
            key_id: (secret.get_secret_value().encode(), f"bridge-event:{key_id}:{prefix}\n".encode())
            for key_id, secret in keys.items()
        }
        self._first = next(iter(self._keys), None)

    def __bool__(self) -> bool:
        return self._first is not None

    def encode(self, event: Event[Any], *, max_bytes: int | None = None) -> bytes:
        """Return *event* as it goes over the wire: signed with the first key, without a signature when there is none.

        Raises:
            InvalidEvent: It is larger than *max_bytes*.
        """
        if self._first is None:
            return unsigned(event).encode(max_bytes=max_bytes)
        data = _without(event).encode(max_bytes=max_bytes)
        data = b'%b,"signature":"%b:%b"}' % (data[:-1], self._first.encode(), self._mac(self._first, data))
        if max_bytes is not None and len(data) > max_bytes:
            text = f"with its signature the event has {len(data)} bytes, the limit is {max_bytes}"
            raise InvalidEvent("size", SIGNATURE, text)
        return data

    def verify(self, data: bytes) -> dict[str, Any]:
        """Return the fields of a signed event that can be decoded.

        Raises:
            InvalidEvent: Not signed, not with one of the keys, or readers may take it in different ways.
        """
        start = data.rfind(_START, max(0, len(data) - _MAX_FIELD_BYTES))
        found = _FIELD.fullmatch(data, start) if start > 0 else None
        if found is None:
            text = "the event does not end with a signature, as its type must by bridge_require_signature"
            raise InvalidEvent(SIGNATURE, SIGNATURE, text)
        key_id = found[1].decode()
        if key_id not in self._keys:
            raise InvalidEvent(SIGNATURE, SIGNATURE, f"there is no key {key_id!r} in bridge_signing_keys")
        if not hmac.compare_digest(found[2], self._mac(key_id, data[:start] + b"}")):
            text = f"key {key_id!r} has not signed this: it was changed, is of another bus, or of another secret"
            raise InvalidEvent(SIGNATURE, SIGNATURE, text)
        fields: dict[str, Any] = _decoder.decode(data.decode())
        if not is_plain(fields):
            text = "a signed event has id, type and timestamp, whole ms, under these names and with no other types"
            raise InvalidEvent(SIGNATURE, "", text)
        return fields

    def has_signed(self, data: bytes) -> bool:
        """Whether *data* is an event with the signature of one of the keys."""
        try:
            self.verify(data)
        except InvalidEvent:
            return False
        return True

    def _mac(self, key_id: str, text: bytes) -> bytes:
        secret, domain = self._keys[key_id]
        return hmac.digest(secret, domain + text, "sha256").hex().encode()


def is_signed(event: Event[Any]) -> bool:
    """Whether *event* has a signature, right or wrong."""
    given = (event.__pydantic_extra__ or {}).get(SIGNATURE)
    return isinstance(given, str) and _GIVEN.fullmatch(given) is not None


def unsigned(event: Event[Any]) -> Event[Any]:
    """Return *event* without its signature, which is of the very bytes that somebody wrote."""
    return _without(event) if is_signed(event) else event


def _without(event: Event[Any]) -> Event[Any]:
    if SIGNATURE not in (event.__pydantic_extra__ or {}):
        return event
    copied = event.model_copy()
    (copied.__pydantic_extra__ or {}).pop(SIGNATURE)
    return copied


def _usable(keys: Any) -> dict[str, SecretStr]:
    # No key id is in the texts of the errors: somebody may have mixed it up with the secret.
    if not isinstance(keys, Mapping):
        raise ValueError('maps key ids to secrets: {"2026-11": "..."}')
    usable: dict[str, SecretStr] = {}
    for number, (key_id, secret) in enumerate(keys.items(), start=1):
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
            raise ValueError(f"the id of key {number} is not 1 to {_MAX_KEY_ID} of A-Z a-z 0-9 . _ -")
        if not isinstance(text, str) or len(text.encode()) < _MIN_SECRET_BYTES:
            how = "make one with: openssl rand -hex 32"
            raise ValueError(f"the secret of key {number} is no text of {_MIN_SECRET_BYTES} bytes or more; {how}")
        usable[key_id] = SecretStr(text)
    return usable


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        text = "a name comes twice in one object, and readers differ in which one they take"
        raise InvalidEvent(SIGNATURE, "", text)
    return fields


_decoder = json.JSONDecoder(object_pairs_hook=_each_once)

#: Key id to secret, for the settings.
SigningKeys = Annotated[dict[str, SecretStr], BeforeValidator(_usable)]

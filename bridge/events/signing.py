"""Signed events: a reader with the key can verify that a holder of the key wrote an event, byte for byte.

A signature is the last field of the event's JSON, ``"signature":"<key id>:<64 hex digits>"``: the HMAC-SHA256 of the
object without that field. Other programs can sign and verify too: docs/explanation/signing.md specifies the format
and has test vectors.
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
from bridge.events.validation import KEY_ID_PATTERN, MAX_KEY_ID, SIGNATURE, is_plain, is_signature

#: How far the clock of a publisher may be ahead of this one.
CLOCK_SKEW_S = 300
#: A shorter secret would be weaker than HMAC-SHA256.
_MIN_SECRET_BYTES = 32
_KEY_ID = re.compile(KEY_ID_PATTERN)
_START = b',"signature":"'
#: From there to the end, without white space, so that there is only one way to write it.
_FIELD = re.compile(rb'%b(%b):([0-9a-f]{64})"\}' % (_START, _KEY_ID.pattern.encode()))
_MAX_FIELD_BYTES = len(_START) + MAX_KEY_ID + len(':"}') + 64


class Keyring:
    """Signs with the first of several keys and verifies with any of them, so that keys can be rotated.

    Arguments:
        keys: Key id to secret, as in ``signing_keys``.
        prefix: Channel prefix of the bus. It is signed too, so an event of one bus is not valid on another.
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
        """Return *event* as JSON, signed with the first key; without keys, it has no signature.

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
        """Return the fields of a signed event, which must be valid otherwise.

        Raises:
            InvalidEvent: It is not signed, not signed with one of the keys, or ambiguous to readers.
        """
        start = data.rfind(_START, max(0, len(data) - _MAX_FIELD_BYTES))
        found = _FIELD.fullmatch(data, start) if start > 0 else None
        if found is None:
            text = "the event does not end with a signature, which bridge_require_signature requires for its type"
            raise InvalidEvent(SIGNATURE, SIGNATURE, text)
        key_id = found[1].decode()
        if key_id not in self._keys:
            raise InvalidEvent(SIGNATURE, SIGNATURE, f"there is no key {key_id!r} in bridge_signing_keys")
        if not hmac.compare_digest(found[2], self._mac(key_id, data[:start] + b"}")):
            text = f"key {key_id!r} has not signed this: the event was changed, or signed for another bus or secret"
            raise InvalidEvent(SIGNATURE, SIGNATURE, text)
        fields: dict[str, Any] = _decoder.decode(data.decode())
        if not is_plain(fields):
            text = "a signed event needs a string id, a string type and an integer timestamp in ms, under these names"
            raise InvalidEvent(SIGNATURE, "", text)
        return fields

    def has_signed(self, data: bytes) -> bool:
        """Return whether *data* is an event with a valid signature of one of the keys."""
        return self.signer(data) != ""

    def signer(self, data: bytes) -> str:
        """Return the id of the key that has signed the event *data*; empty without a valid signature."""
        try:
            signature = self.verify(data)[SIGNATURE]
        except InvalidEvent:
            return ""
        return str(signature).partition(":")[0]

    def _mac(self, key_id: str, text: bytes) -> bytes:
        secret, domain = self._keys[key_id]
        return hmac.digest(secret, domain + text, "sha256").hex().encode()


def is_signed(event: Event[Any]) -> bool:
    """Return whether *event* has a signature, valid or not."""
    return is_signature((event.__pydantic_extra__ or {}).get(SIGNATURE))


def unsigned(event: Event[Any]) -> Event[Any]:
    """Return *event* without its signature, which is only valid for the bytes that its publisher wrote."""
    return _without(event) if is_signed(event) else event


def _without(event: Event[Any]) -> Event[Any]:
    if SIGNATURE not in (event.__pydantic_extra__ or {}):
        return event
    copied = event.model_copy()
    (copied.__pydantic_extra__ or {}).pop(SIGNATURE)
    return copied


def _usable(keys: Any) -> dict[str, SecretStr]:
    # The errors do not quote key ids, since a user may have swapped key id and secret.
    if not isinstance(keys, Mapping):
        raise ValueError('must be a mapping of key ids to secrets: {"2026-11": "..."}')
    usable: dict[str, SecretStr] = {}
    for number, (key_id, secret) in enumerate(keys.items(), start=1):
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
            raise ValueError(f"the id of key {number} is not 1 to {MAX_KEY_ID} of A-Z a-z 0-9 . _ -")
        if not isinstance(text, str) or len(text.encode()) < _MIN_SECRET_BYTES:
            how = "create one with: openssl rand -hex 32"
            raise ValueError(f"the secret of key {number} must be a string of {_MIN_SECRET_BYTES} bytes or more; {how}")
        usable[key_id] = SecretStr(text)
    return usable


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        text = "an object has the same name twice, and readers differ in which value they use"
        raise InvalidEvent(SIGNATURE, "", text)
    return fields


_decoder = json.JSONDecoder(object_pairs_hook=_each_once)

#: Key id to secret, for the settings.
SigningKeys = Annotated[dict[str, SecretStr], BeforeValidator(_usable)]

"""Events that are valid, and bytes that accidents have made of them."""

from __future__ import annotations

import random
import re
from typing import Any

from bridge import Event
from tests.support.outside import as_typescript_broadcasts

#: Valid events for the mutator to break; it never makes an id that begins with "next".
CORPUS: list[dict[str, Any]] = [
    {"id": "m-1", "payload": {"text": "s\u00fc\u00df\U0001f319", "n": [1, -2.5e3, None]}, "vendor": [1]},
    {"id": "m-2", "metadata": {"hops": 15, "causationId": "m-1"}},
    {"id": "m-3", "type": "Security.ThreatDetected", "payload": {"a": {"b": {"c": []}}}, "correlationId": "c-1"},
]
_EVENTS = [Event(**{"type": "dream.created", "timestamp": 1_760_000_000_000} | fields) for fields in CORPUS]
VALID = [_EVENTS[0].encode(), as_typescript_broadcasts(_EVENTS[1]).encode(), _EVENTS[2].encode()]
VALID += [b'{"eventId":7,"eventType":"a.b","payload":"\\ud83d\\ude00\\u0000"}']
CHANNELS = [b"dream.created"] * 8 + [b"Security.ThreatDetected", b"a.b"] * 3
CHANNELS += [b"", b"\xff\xfe", b"a\0b", b"\r\n", b"*", "\u00fc".encode(), b"event:m-1", b"dream.created" * 8000]

TOKEN = re.compile(rb'"[^"]*"|-?[\d.]+|null|true')
#: Replacements for a value or a name.
TOKENS = b'null -0 1.5 [] {} "a.b" "m-2" "id" "type" "metadata" "timestamp" "eventId" "correlation_id"'.split()
TOKENS += rb'NaN 1e400 9223372036854775808 1000000000000000000001 "\ud800" "RedisEventBus"'.split()
TOKENS += rb'{"hops":17} {"__type__":"date","__value__":1}'.split()
#: Insertions at any position.
PIECES = [*rb'{ [ , " \ 7 x'.split(), b"[" * 70, b" ", b"\0", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3\xa9"]
ACCIDENTS = ["flip", "delete", "insert", "duplicate", "truncate", "swap", "splice", "token"]


def mutated(chance: random.Random) -> bytes:
    """Return one of VALID after a few random changes."""
    data = bytearray(chance.choice(VALID).replace(b"m-1", b"m-%d" % chance.randint(1, 999)))
    accidents = chance.choice([["token"], ACCIDENTS])
    for _ in range(chance.randint(1, 4)):
        at, other = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
        some = slice(at, at + chance.randint(1, 6))
        match chance.choice(accidents):
            case "token" if found := list(TOKEN.finditer(data)):
                token = chance.choice(found)
                data[token.start() : token.end()] = chance.choice(TOKENS)
            case "flip" if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case "delete":
                del data[some]
            case "insert":
                data[at:at] = chance.choice(PIECES)
            case "duplicate":
                data[at:at] = data[some]
            case "truncate":
                del data[at:]
            case "swap" if other < len(data):
                data[at], data[other] = data[other], data[at]
            case "splice":
                data[at:] = chance.choice(VALID)[at:]
    return bytes(data)

"""Bad input: what external publishers may send, and the expected result. ``test_bad_input.py`` sends all of it.

Rows are numbered as in the project's catalogue of bad input; its rows 24 and 38 do not concern messages. Comments
explain the decisions that a reader might not expect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

PREFIX = "test:bad-input:"
LIMIT = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """One message. *outcome* is ``taken``, ``again``, ``ignored``, or the reason of its dead letter.

    In all texts, ``$`` is replaced by a unique id and ``#`` by the type of the row. *on* follows the prefix in the name
    of the channel; after a ``!`` it is the full name. With a *key*, the message is not broadcast but written under
    ``{prefix}event:``, before the subscriber starts or (*late*) after everything was broadcast. *fields* are the fields
    that the journal must have for an accepted event.
    """

    outcome: str
    data: bytes = b""
    fields: dict[str, Any] = field(default_factory=dict)
    on: bytes = b"#"
    key: bytes = b""
    late: bool = False

    def filled_in(self, row: int, number: int) -> Case:
        """Return this case with id and type filled in."""
        own_id, own_type = f"r{row}-{number}", f"r{row}"

        def fill(text: bytes) -> bytes:
            return text.replace(b"$", own_id.encode()).replace(b"#", own_type.encode())

        fields = self.fields | ({"id": own_id} if self.fields.get("id") == "$" else {})
        return replace(self, data=fill(self.data), fields=fields, on=fill(self.on), key=fill(self.key))


def e(rest: bytes) -> bytes:
    """Return an event with an id, a type and *rest*."""
    return b'{"id":"$","type":"#",%s}' % rest


def of_type(raw: bytes) -> bytes:
    return b'{"id":"$","type":"%s"}' % raw


def of_id(raw: bytes) -> bytes:
    return b'{"id":%s,"type":"#"}' % raw


def dead(reason: str, *messages: bytes, on: bytes = b"#") -> list[Case]:
    return [Case(reason, message, on=on) for message in messages]


def taken(message: bytes, on: bytes = b"#", **fields: Any) -> list[Case]:
    return [Case("taken", message, {"id": "$"} | fields, on)]


def kept(name: str, *values: bytes) -> list[Case]:
    """Return events with these values in the field *name*, which are stored unchanged."""
    return [case for raw in values for case in taken(e(b'"%s":%s' % (name.encode(), raw)), **{name: json.loads(raw)})]


def at_key(outcome: str, message: bytes, key: bytes = b"$", *, late: bool = False, **fields: Any) -> list[Case]:
    return [Case(outcome, message, {"id": "$"} | fields, key=key, late=late)]


IDS = [rb"a\nb", b"a b", rb"a\u0000", b"a*", b"a?", b"[a", b"a]", rb"a\\", b"{a", b"a}"]
LOOK_ALIKES = ["\u00e9", "e\u0301", "\u0430", "\uff41", "a\u200b"]
TYPES = [b"a b", b"a*", rb"a\nb", b".a", b"a.", b"a..b", b"x" * 201]
#: Names of the bridge's own keys and channels, which have braces around the prefix.
OWN_NAMES = [b"event:1", b"seen:1", b"dead:1", b"done:1", b"inflight:1", b"journal", b"heartbeat", b"dlq"]
TIMES = [b"1760000000", b"1760000000000", b"1760000000000000", b"1760000000000000000", b"1760000000.5"]
TIMES += [b'"2026-01-02T03:04:05%s"' % zone for zone in (b"Z", b"+02:00", b"")]
ODD_TIMES = [b"-1", b"99999999999999999", b"true", b'"now"', b"1e300"]
KWARGS = b'{"self":1,"args":[1],"kwargs":{},"task_id":"x"}'
FOREIGN = [b"__keyspace@0__:" + PREFIX.encode(), b"__keyevent@0__:set", b"other:a.b", b"test:bad-inpu", b"celeryev"]

ROWS: dict[int, list[Case]] = {
    1: dead("empty", b"", b" \t\r\n "),
    2: dead("json", b"{'id':'$'}", e(b'"payload":1,'), b'{"id":"$"', b'{"id":"$"} {}'),
    3: dead("not_object", b"null", b'"x"', b"[1]", b"3"),
    4: [
        *dead("non_finite", *[e(b'"payload":%s' % raw) for raw in (b"NaN", b"-Infinity", b"1e999", b"[Infinity]")]),
        *dead("non_finite", e(b'"timestamp":NaN')),
    ],
    5: [
        *dead("integer_range", *[e(b'"payload":%b1000000000000000000001' % sign) for sign in (b"", b"-")]),
        *dead(
            "integer_range",
            e(b'"payload":' + b"9" * 5000),
            of_id(b"9" * 5000),
            e(b'"timestamp":1180591620717411303424'),  # 2**70
        ),
        *kept("payload", b"[9223372036854775808,-9223372036854775809,999999999999999999999]"),
    ],
    # The parser's own limit is checked first. The count that follows makes the limit the same on every Python version.
    6: [
        *dead("depth", e(b'"payload":%s1%s' % (b"[" * 64, b"]" * 64)), b"[" * 100_000, b'{"a":' * 100_000),
        *kept("payload", b"[" * 63 + b"]" * 63),
    ],
    7: [
        *dead("size", e(b'"payload":"%s"' % (b"x" * 10_000_000)), b" " * (LIMIT + 1)),
        *kept("payload", b'"%s"' % (b"x" * 1_000_000)),
    ],
    8: dead("encoding", e(b'"payload":"\xe9"'), '{"id":"i"}'.encode("utf-16"), b"\xef\xbb\xbf" + e(b'"payload":1')),
    9: [
        *taken(e(rb'"payload":"a\ud83d"'), payload="a\ufffd"),
        *taken(e(rb'"\uDFFF":1'), **{"\ufffd": 1}),
        *taken(e(rb'"payload":"\ude00\ud83d"'), payload="\ufffd\ufffd"),
        *kept("payload", rb'"\ud83d\ude00"', rb'"\\ud83d"'),
    ],
    10: [
        *kept("payload", rb'"\u0000\u0007\n"'),
        *dead("json", e(b'"payload":"\0"')),
        *dead("id", of_id(rb'"a\u0000"')),
        *dead("type", of_type(rb"#\u0000")),
    ],
    11: taken(b'{"id":"x","id":"$","type":"y","type":"#","payload":1,"payload":2}', payload=2),
    # An id is never derived from the bytes: they may differ between the copy in the key and the broadcast.
    12: dead("no_id", b'{"type":"#"}', b"{}"),
    13: [
        *taken(of_id(b"13"), id="13"),
        *dead("no_id", of_id(b"null")),
        *dead("id", *[of_id(raw) for raw in (b"1.5", b"true", b'["a"]', b"{}")]),
    ],
    14: [
        *dead("id", of_id(b'""'), of_id(b'"%s"' % (b"x" * 201))),
        *taken(of_id(b'"%s"' % (b"x" * 200)), id="x" * 200),
    ],
    15: [
        *dead("id", *[of_id(b'"%s"' % raw) for raw in IDS]),
        *taken(of_id(b'"a:b.c_d@e+f-1"'), id="a:b.c_d@e+f-1"),
    ],
    # The copies of one publisher may differ in source and timestamp.
    16: [
        *taken(b'{"id":"r16","type":"#","payload":{"a":1,"b":2}}', id="r16"),
        Case("again", b'{"id":"r16","type":"#","payload":{"a":1,"b":2}}'),
        Case("again", b'{"id":"r16","type":"#","payload":{"b":2,"a":1},"timestamp":5,"source":"other"}'),
    ],
    17: [
        *taken(b'{"id":"r17","type":"#","payload":1}', id="r17", payload=1),
        *dead("id_conflict", b'{"id":"r17","type":"#","payload":2}'),
    ],
    18: [
        *taken(b'{"id":"r18","type":"#","payload":1}', id="r18", type="r18"),
        *dead("id_conflict", b'{"id":"r18","type":"#.x","payload":1}', on=b"#.x"),
    ],
    19: [
        *dead("id", *[of_id(b'"%s"' % text.encode()) for text in LOOK_ALIKES]),
        *taken(of_id(b'"r19-a"'), id="r19-a"),
        *taken(of_id(b'"r19-A"'), id="r19-A"),
    ],
    20: [
        *taken(b'{"id":"$"}', type="r20"),
        *taken(b'{"id":"$","type":null}', type="r20"),
        *dead("type", of_type(b""), b'{"id":"$","type":5}'),
        *dead("no_type", b'{"id":"$"}', of_type(b"undefined"), on=b"undefined"),
        *dead("no_type", b'{"id":"$","type":null}', on=b"null"),
        *taken(b'{"id":"$","eventType":"a.b"}', b"undefined", type="a.b"),
        *at_key("no_type", b'{"id":"$"}'),  # a key does not contain a type
    ],
    21: dead("channel_mismatch", of_type(b"#.x"), of_type(b"R21"), of_type(b"other")),
    22: [
        *[Case("type", of_type(raw), on=json.loads(b'"%s"' % raw).encode()) for raw in TYPES],
        *dead("type", b'{"id":"$"}', on=b""),
        *dead("type", b'{"id":"$"}', on=b"\xff\xfe#"),
        *dead("channel_mismatch", e(b'"payload":1'), on=b"\xff#"),
        *dead("channel_mismatch", e(b'"payload":2'), on=b"#" * 300_000),
        *taken(of_type(b"Security.ThreatDetected"), b"Security.ThreatDetected"),
        *taken(of_type(b"a/b:c-d_e.F"), b"a/b:c-d_e.F"),
    ],
    23: [case for raw in OWN_NAMES for case in taken(of_type(raw), raw)],
    # The unit of a timestamp is not guessed. Nothing depends on it, so it is stored unchanged.
    25: kept("timestamp", *TIMES),
    26: [
        *kept("timestamp", *ODD_TIMES),
        *dead("timestamp", e(b'"timestamp":[1]'), e(b'"timestamp":{}')),
    ],
    27: [case for name in ("vendor", "encode", "model_config", "__class__", "self") for case in kept(name, b"[1]")],
    28: [
        *taken(e(b'"data":1'), payload=None, data=1),
        *taken(e(b'"data":1,"specversion":"1.0"'), payload=1, specversion="1.0"),
        *dead("cloudevent", e(b'"data_base64":"AA==","specversion":"1.0"')),
        *kept("payload", b"null", b"[]", b"3", b'"x"', b"false"),
    ],
    # Celery's workers would discard the messages of the rejected events, or convert the payload to another type.
    29: [
        *taken(b'{"id":"$","payload":%s,"task_id":"x"}' % KWARGS, b"dream.created", payload=json.loads(KWARGS)),
        *dead("reserved", e(b'"payload":{"__type__":"x","__value__":1}')),
        *dead("reserved", e(rb'"vendor":[{"__value__":1,"\u005f_type__":[]}]')),
        *dead("reserved", e(b'"payload":{"__type__":"uuid","__value__":{"hex":"%s"}}' % (b"0" * 32))),
        *kept("payload", b'{"__type__":"x"}', b'{"__type__":"x","__value__":1,"more":1}'),
    ],
    # The first copy to reach the journal wins. Keys are read only to find missed events, so a later key is not read.
    30: [
        *at_key("taken", b'{"id":"r30a","type":"#","payload":"key"}', b"r30a", id="r30a", payload="key"),
        *dead("id_conflict", b'{"id":"r30a","type":"#","payload":"heard"}'),
        *taken(b'{"id":"r30b","type":"#","payload":"heard"}', id="r30b", payload="heard"),
        *at_key("ignored", b'{"id":"r30b","type":"#","payload":"key"}', b"r30b", late=True),
    ],
    31: [
        *taken(b'{"id":"r31","type":"#"}', id="r31"),
        *at_key("ignored", b'{"id":"r31","type":"#"}', b"r31", late=True),
        *at_key("taken", e(b'"payload":"key alone"'), payload="key alone"),
    ],
    # A broadcast that contains only a key is not part of the wire format. Catch-up still finds the event in that key.
    32: [
        *dead("not_object", b'"r32"'),
        *dead("json", b"r32"),
        *at_key("taken", b'{"id":"r32","type":"#"}', b"r32", late=True, id="r32"),
    ],
    # Keys of other programs are reported and left unchanged. Redis deletes a key whose TTL is set to 0.
    33: [
        *at_key("taken", e(b'"payload":"in a key"')),
        *at_key("wrong_key_type", b"", b"hash-$"),
        *at_key("id", b'{"id":"a b","type":"#"}', b"\xff[*#"),
        *at_key("json", b"{#", b"#" * 100_000),
    ],
    # The subscriber is not subscribed to these channels, so there is nothing to count.
    34: [Case("ignored", b'{"id":"$","type":"a.b"}', on=b"!" + name) for name in FOREIGN],
    35: taken(of_type(b"nobody.cares"), b"nobody.cares"),
    36: taken(of_type(b"dream.created"), b"dream.created"),
    37: [
        *dead("hop_limit", *[e(b'"payload":null,"metadata":{"hops":%d}' % hops) for hops in (17, 2**62)]),
        *kept("metadata", *[b'{"hops":%s}' % raw for raw in (b"15", b'"17"', b"true", b"-1", b"17.0")]),
    ],
}


def filled(unit: bytes, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """Return an event of just under the maximum size, whose payload repeats *unit*."""
    head, tail = b'{"id":"i","type":"a.b","payload":' + opening, closing + b"}"
    return head + b",".join([unit] * ((LIMIT - len(head) - len(tail)) // (len(unit) + 1))) + tail


def number(raw: bytes) -> bytes:
    return b'{"id":"i","type":"a.b","payload":%s}' % raw


LONG = LIMIT - 1000
COSTLY = {
    "lists": filled(b"[]"),
    "objects": filled(b"{}"),
    "deep lists": filled(b"[" * 58 + b"]" * 58),
    "deep objects": filled(b'{"a":' * 58 + b"1" + b"}" * 58),
    "wide below deep": filled(b"[]", b"[" * 60, b"]" * 60),
    "too deep": b"[" * LIMIT,
    "too deep, closed": number(b"[" * (LONG // 2) + b"]" * (LONG // 2)),
    "objects never closed": b'{"a":' * (LIMIT // 5),
    "100,000 names": number(b"{%s}" % b",".join(b'"%d":1' % name for name in range(100_000))),
    "100,000 fields": b'{"id":"i","type":"a.b",%s}' % b",".join(b'"%d":1' % name for name in range(100_000)),
    "one name repeated": filled(b'"a":1', b"{", b"}"),
    "integers": filled(b"1"),
    "floats that grow": filled(b"1e15"),
    "floats": filled(b"1.2345678901234567e-300"),
    "digits": number(b"9" * LONG),
    "fraction": number(b"0." + b"9" * LONG),
    "digits and exponent": number(b"%se-%d" % (b"9" * LONG, LONG)),
    "exponent": number(b"1e999999999"),
    "exponent below": number(b"1e-999999999"),
    "exponent of zero": number(b"0e999999999"),
    "exponent of digits": number(b"1e-" + b"9" * LONG),
    "NUL": filled(rb'"\u0000\u0000"'),
    "surrogate pairs": filled(rb'"\ud83d\ude00"'),
    "brackets in text": filled(b'"[{"'),
    "quotes": number(b"[" * 65 + b'"' * LONG),
    "type": b'{"id":"i","type":"%sa"}' % (b"a." * (LONG // 2)),
    "id": b'{"id":"%s","type":"a.b"}' % (b"i" * LONG),
    "spaces": b" " * LONG + b"{",
}

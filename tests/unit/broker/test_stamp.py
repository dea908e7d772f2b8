"""Stamps: bytes with places that are filled in."""

from __future__ import annotations

import json

from bridge.broker.stamp import Stamp


def test_a_stamp_gives_what_the_example_would() -> None:
    """Each place gets its value, also where it occurs twice or in another order; percent signs stay as they are."""

    def make(name: str, number: str) -> bytes:
        return json.dumps({"number": number, "of": [name, name, "100 %b %(name)s"]}).encode()

    stamp = Stamp.from_example(make, 2)
    assert stamp.fill(b"a%b", b"1") == make("a%b", "1")
    assert stamp.fill(b"c", b"22") == make("c", "22")

"""Finds ids of events and chains by how they begin. Redis has no index of that, and looks at the name of every key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from redis import Redis

from bridge.events import escape_glob
from bridge.storage.keys import Keys

#: Names that Redis looks at in one step. It serves nobody else for that long: less than a millisecond.
_SCAN_COUNT = 500


def ids_starting_with(client: Redis, keys: Keys, start: str) -> Iterator[tuple[int, set[str]]]:
    """Yield for each step of a scan the number of keys so far, and ids of events and chains that begin with *start*.

    They come from the marks, which outlive the events by an hour, and from the index of what events caused. In a
    cluster all of these have one hash tag, and so are on the server that *client* talks to.

    Raises:
        RedisError: Redis does not answer.
    """
    begins = [keys.seen(start), keys.consequences(start)]
    ends = [len(one) - len(start) for one in begins]
    own = keys.seen("").partition("}")[0] + "}"
    match, looked_at = f"{escape_glob(own)}*:{escape_glob(start)}*", 0
    cursor: int | None = None
    while cursor != 0:
        cursor, page = client.scan(cursor or 0, match=match, count=_SCAN_COUNT)
        names = [name.decode(errors="backslashreplace") for name in cast("list[bytes]", page)]
        looked_at += _SCAN_COUNT
        found = zip(begins, ends, strict=True)
        yield looked_at, {name[end:] for one, end in found for name in names if name.startswith(one)}

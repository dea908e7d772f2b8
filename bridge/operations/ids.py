"""Full ids of events and chains, from the first characters of one."""

from __future__ import annotations

import re
from collections.abc import Callable

from bridge.errors import BridgeError
from bridge.events import ID_PATTERN
from bridge.operations.history import History
from bridge.storage import Storage

#: Most ids that are listed if several begin in the same way; the search ends when it has found more.
_MOST_LISTED = 10
_ID = re.compile(ID_PATTERN)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class AmbiguousId(BridgeError):
    """Several ids begin in the same way.

    Arguments:
        start: The given characters.
        candidates: The first of these ids, each with what it is the id of.
        more: Whether there are further ones.
    """

    def __init__(self, start: str, candidates: dict[str, str], more: bool) -> None:
        super().__init__(start, candidates, more)
        self.start = start
        self.candidates = candidates
        self.more = more

    def __str__(self) -> str:
        rows = [f"  {one}  {about}".rstrip() for one, about in self.candidates.items()]
        more = ["  and more"] if self.more else []
        return "\n".join([f"several ids begin with {self.start}; give more of one of them:", *rows, *more])


def only_id(start: str, about: dict[str, str]) -> str | None:
    """Return the only id in *about*; None if it is empty.

    Raises:
        AmbiguousId: There are several.
    """
    if len(about) > 1:
        raise AmbiguousId(start, dict(sorted(about.items())[:_MOST_LISTED]), len(about) > _MOST_LISTED)
    return next(iter(about), None)


def full_id(storage: Storage, start: str, step: Callable[[int], object] = lambda _: None) -> str | None:
    """Return the id of an event or a chain that begins with *start*, if there is only one; None if no id does.

    It looks at the names of all keys of the server, in short steps; a million keys take a second or more.

    Arguments:
        step: Called after each step with the number of keys so far; it may raise an error to end the search.

    Raises:
        AmbiguousId: Several ids begin with it.
        BridgeError: An event cannot be read.
        RedisError: Redis does not answer.
    """
    if not _ID.fullmatch(start) or _UUID.fullmatch(start):
        return None
    found: set[str] = set()
    for looked_at, ids in storage.ids_starting_with(start):
        found |= ids
        if len(found) > _MOST_LISTED:
            break
        step(looked_at)
    types = {one: event.type for one, event in History(storage).events(sorted(found)).items()}
    if len(found) <= _MOST_LISTED:  # otherwise some of them exist
        found = {one for one in found if one in types or storage.client.zcard(storage.keys.consequences(one))}
    return only_id(start, {one: types.get(one, "") for one in found})

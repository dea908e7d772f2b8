"""Ids that the user has not typed in full."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from bridge.cli import output
from bridge.operations import History, full_id, only_id
from bridge.storage import EntryFilter, Storage

T = TypeVar("T")


def look_up(storage: Storage, text: str, read: Callable[[str], T | None]) -> T | None:
    """Return what *read* returns for an id, or else for the only id that begins with *text*; None without such an id.

    Raises:
        BridgeError: Several ids begin with it.
    """
    found = read(text)
    if found is None and (full := _searched(storage, text)) is not None:
        found = read(full)
    return found


def full_event_ids(storage: Storage, texts: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of events that *texts* are, or are the beginnings of. What is unknown is returned as it is.

    Raises:
        BridgeError: Several ids begin with one of them.
    """
    known = History(storage).read(list(texts))
    return tuple(text if text in known else _searched(storage, text) or text for text in texts)


def full_dead_letter_ids(storage: Storage, texts: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of dead letters, or of their events, as :func:`full_event_ids` does.

    Raises:
        BridgeError: Several ids begin with one of them.
    """
    about: dict[str, str] = {}
    for one in storage.dead_letters.select(EntryFilter()) if texts else ():
        about |= {one.event_id: one.event_type, one.dead_letter_id: f"{one.reason} {one.event_type} {one.handler}"}
    return tuple(_only(text, about) for text in texts)


def _only(text: str, about: dict[str, str]) -> str:
    if text in about or not text:
        return text
    return only_id(text, {one: what for one, what in about.items() if one.startswith(text)}) or text


def _searched(storage: Storage, text: str) -> str | None:
    with output.progress("searching for the id") as report:
        return full_id(storage, text, lambda keys: report(keys, f"{keys:,} keys"))

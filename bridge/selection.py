"""Which entries of the journal, or which dead letters, a person means."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.patterns import compile_pattern

_LAST_SEQUENCE = 2**64 - 1


@dataclass(frozen=True)
class Selection:
    """Those for which all of this holds.

    Arguments:
        since_ms, until_ms: Written at or after the one and before the other, ms since the epoch.
        reason, event_type: Globs, as in ``@on_event``.
        handler: Name of a handler task.
        ids: Ids of letters or of events.

    Raises:
        ValueError: A glob is none.
    """

    since_ms: int | None = None
    until_ms: int | None = None
    reason: str | None = None
    event_type: str | None = None
    handler: str | None = None
    ids: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for pattern in (self.reason, self.event_type):
            if pattern is not None:
                compile_pattern(pattern)

    def holds_letter(self, reason: str, handler: str, event_type: str, *ids: str) -> bool:
        """Whether a dead letter is one of them, its time aside."""
        return _fits(self.reason, reason) and self.handler in (None, handler) and self.holds_event(event_type, *ids)

    def holds_event(self, event_type: str, *ids: str) -> bool:
        """Whether an event of this type is one of them that goes by any of *ids*."""
        return _fits(self.event_type, event_type) and (not self.ids or any(one and one in self.ids for one in ids))

    @property
    def bounds(self) -> tuple[str, str]:
        """The first and the last stream id they may have."""
        first = "-" if self.since_ms is None else f"{self.since_ms}-0"
        last = "+" if self.until_ms is None else f"{self.until_ms - 1}-{_LAST_SEQUENCE}"
        return first, last


def _fits(pattern: str | None, text: str) -> bool:
    return pattern is None or compile_pattern(pattern).fullmatch(text) is not None

"""Judging a run: what was accepted against what had its effect, from records that no fault could touch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Handlers of each type of event, by task name.
HANDLERS = {
    "chaos.bare": ("bare",),
    "chaos.guarded": ("guarded", "witness"),
    "chaos.transactional": ("transactional",),
    "chaos.considered": ("considered",),
    "chaos.chained": ("link",),
    "chaos.retrying": ("retrying",),
    "chaos.failing": ("failing",),
    "chaos.slow": ("slow",),
}
#: Handlers that take no care of repetitions.
BARE = frozenset({"bare", "witness"})
#: Handlers whose task is to end as a dead letter.
DOOMED = frozenset({"failing"})


@dataclass(frozen=True)
class Accepted:
    """An event that is safe, and when it was written: between the first try and the answer that accepted it."""

    began: float
    ended: float
    type: str
    event_id: str


@dataclass(frozen=True)
class Loss:
    """What the bus's Redis was told to forget, or lost with its power: the writes between two moments."""

    since: float
    until: float

    def may_hold(self, event: Accepted) -> bool:
        return event.began <= self.until and event.ended >= self.since


@dataclass(frozen=True)
class Evidence:
    """What is known about a run.

    Arguments:
        accepted: What publishers were told is safe.
        journalled: Type and id of what is in the journal, also of events whose publisher was told nothing.
        effects: Every effect, ``handler event_id``; of a chained event that of its link.
        deliveries: The task id of every message that reached a pool, retries not counted.
        letters: Handler, event id and reason of every dead letter.
        losses: Of the bus.
    """

    accepted: Sequence[Accepted]
    journalled: Sequence[tuple[str, str]] = ()
    effects: Sequence[str] = ()
    deliveries: Sequence[str] = ()
    letters: Sequence[tuple[str, str, str]] = ()
    losses: Sequence[Loss] = ()


@dataclass
class Verdict:
    """What became of a run.

    Arguments:
        events: How many were to be dispatched, whatever the faults: accepted, or in the journal.
        lost: Pairs ``handler event_id`` without effect and without dead letter.
        excused: Those of them that the bus's Redis lost, within the window that its settings allow.
        duplicates: Pairs with more than one effect, of handlers that take care, or with more than one dead letter.
        repeats: How often the effect of a handler that takes no care was repeated.
        delivered_again: Messages that reached a pool beyond the first of their task.
        unexpected: Reasons of dead letters that nobody intended.
    """

    events: int = 0
    lost: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    repeats: int = 0
    delivered_again: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)

    @property
    def green(self) -> bool:
        return self.events > 0 and not (self.lost or self.duplicates or self.unexpected)


def read_log(path: Path) -> list[Accepted]:
    """Read the log of a publisher."""
    rows = (line.split() for line in path.read_text().splitlines())
    return [Accepted(float(began), float(ended), kind, event_id) for began, ended, kind, event_id in rows]


def judge(evidence: Evidence) -> Verdict:
    """Compare what should have happened with what did."""
    events = {event.event_id: event for event in evidence.accepted}
    for kind, event_id in evidence.journalled:
        if kind in HANDLERS:  # it is there, so no loss excuses that it did not run
            events[event_id] = Accepted(math.inf, math.inf, kind, event_id)
    verdict = Verdict()
    effects = Counter(evidence.effects)
    letters = Counter(f"{handler} {event_id}" for handler, event_id, _ in evidence.letters)
    for event in events.values():
        missing = [
            pair
            for handler in HANDLERS[event.type]
            if (pair := f"{handler} {event.event_id}") not in effects and pair not in letters
        ]
        excused = any(loss.may_hold(event) for loss in evidence.losses)
        (verdict.excused if excused else verdict.lost).extend(missing)
        verdict.events += not excused
    for pair, count in effects.items():
        if count > 1 and pair.split()[0] in BARE:
            verdict.repeats += count - 1
        elif count > 1:
            verdict.duplicates.append(pair)
    verdict.duplicates += [f"dead letter of {pair}" for pair, count in letters.items() if count > 1]
    verdict.delivered_again = len(evidence.deliveries) - len(set(evidence.deliveries))
    verdict.unexpected = Counter(reason for handler, _, reason in evidence.letters if handler not in DOOMED)
    return verdict

"""The verdict on a run: accepted events compared with their effects, from records that are exempt from faults."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Handlers of each event type, by task name.
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
#: Handlers without precautions against repetitions.
BARE = frozenset({"bare", "witness"})
#: Handlers whose tasks must end as dead letters.
DOOMED = frozenset({"failing"})


@dataclass(frozen=True)
class Accepted:
    """An event that was accepted. It was written between *began*, the first attempt, and *ended*, the reply."""

    began: float
    ended: float
    type: str
    event_id: str


@dataclass(frozen=True)
class Loss:
    """Writes that were lost in a power failure or deleted with a command: all between two moments."""

    since: float
    until: float

    def may_hold(self, event: Accepted) -> bool:
        return event.began <= self.until and event.ended >= self.since


@dataclass(frozen=True)
class Evidence:
    """The records of a run.

    Arguments:
        accepted: Events that were accepted from publishers.
        journalled: Type and id of the events in the journal, including those whose publisher got no reply.
        effects: Every effect as ``handler event_id``; for a chained event, the effect of its link.
        deliveries: The task id of every message that reached a pool, without retries.
        dead_letters: Handler, event id and reason of every dead letter.
        losses: The writes that the bus has lost.
    """

    accepted: Sequence[Accepted]
    journalled: Sequence[tuple[str, str]] = ()
    effects: Sequence[str] = ()
    deliveries: Sequence[str] = ()
    dead_letters: Sequence[tuple[str, str, str]] = ()
    losses: Sequence[Loss] = ()


@dataclass
class Verdict:
    """The verdict on a run.

    Arguments:
        events: Number of events that had to be dispatched in spite of all faults: accepted, or in the journal.
        lost: Pairs ``handler event_id`` without an effect and without a dead letter.
        excused: Such pairs that the Redis of the bus lost within the window that its settings permit.
        duplicates: Pairs with several effects, of handlers with precautions, or with several dead letters.
        repeats: How often effects of handlers without precautions were repeated.
        delivered_again: Number of messages that reached a pool, other than the first message of each task.
        unexpected: Reasons of dead letters that were not intended.
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
    """Compare the expected effects with the actual ones."""
    events = {event.event_id: event for event in evidence.accepted}
    for kind, event_id in evidence.journalled:
        if kind in HANDLERS:  # it is in the journal, so no loss excuses a missing effect
            events[event_id] = Accepted(math.inf, math.inf, kind, event_id)
    verdict = Verdict()
    effects = Counter(evidence.effects)
    letters = Counter(f"{handler} {event_id}" for handler, event_id, _ in evidence.dead_letters)
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
    verdict.unexpected = Counter(reason for handler, _, reason in evidence.dead_letters if handler not in DOOMED)
    return verdict


def together(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Return the verdict on several applications, each of which had to handle every event."""
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    found = Verdict(events=min(verdict.events for verdict in verdicts.values()))
    for group, verdict in verdicts.items():
        found.lost += [f"{group}: {pair}" for pair in verdict.lost]
        found.excused += verdict.excused
        found.duplicates += [f"{group}: {pair}" for pair in verdict.duplicates]
        found.repeats += verdict.repeats
        found.delivered_again += verdict.delivered_again
        found.unexpected.update({f"{group}: {reason}": count for reason, count in verdict.unexpected.items()})
    return found
